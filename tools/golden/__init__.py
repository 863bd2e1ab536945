"""What `tools/parity.py` compares with golden numbers, one concept a file."""
