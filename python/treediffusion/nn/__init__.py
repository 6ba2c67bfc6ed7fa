"""The networks (PyTorch): TreeVAE with its parts, the U-Net and its path encoder."""
