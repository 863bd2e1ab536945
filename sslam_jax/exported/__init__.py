"""The model in PyTorch: files that are copied into every exported folder.

They import nothing of this package. `sslam_torch.py` needs torch alone, the
others are what Hugging Face's classes load from such a folder.
"""
