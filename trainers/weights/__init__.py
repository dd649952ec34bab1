"""Weights of backbones as files: other people's to start from, ours for other libraries to load."""
