"""What `tools/benchmark.py` measures, one concept a file."""
