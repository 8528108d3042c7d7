"""Benchmarks of semantic IDs, one file for each question."""
