"""One script per question: `python -m benchmarks.NAME` prints a table and writes JSON."""
