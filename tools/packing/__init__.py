"""The parts of `tools/pack_audio.py`, one concept a file."""
