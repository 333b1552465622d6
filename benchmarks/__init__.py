"""Seconds and bytes; each measurement prints a table and keeps the numbers in `benchmarks/results`."""
