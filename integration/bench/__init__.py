"""Benchmarks: `python -m integration.bench`. Run by hand, on a quiet machine; nothing here asserts anything about time."""
