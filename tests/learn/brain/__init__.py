"""Fusion of functional and diffusion MRI."""
