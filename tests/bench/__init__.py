"""Benchmarks: ``python -m tests.bench [NAME]`` measures and writes docs/benchmarks.md and .json."""
