"""Semantic IDs: every item of a catalogue a short tuple of codes of its own, coarse to fine."""
