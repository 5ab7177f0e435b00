"""Fusion of functional and diffusion MRI: training, comparison, maps."""
