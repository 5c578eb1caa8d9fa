"""Benchmarks: scripts that print tables. Run by hand, on a quiet machine; nothing here asserts anything about time."""
