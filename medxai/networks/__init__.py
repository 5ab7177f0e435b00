"""Classifier architectures, one a file: plain `nn.Module`s built on MONAI, with their target layers named."""
