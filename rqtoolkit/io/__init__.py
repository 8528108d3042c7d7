"""Artifacts, vectors and codes on disk: arrays and headers, knows no class."""
