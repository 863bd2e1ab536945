"""The parts of `tools/probe.py`, one concept a file."""
