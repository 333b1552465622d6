"""Measurements to repeat; each prints a table and keeps the numbers in `benchmarks/results`."""
