"""Decoding under a constraint: only semantic IDs that exist can be generated."""
