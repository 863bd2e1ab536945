"""The parts of `tools/export_torch.py` and `export_jax.py`, one a file."""
