"""Differentiable search of 3D architectures, its controls, and what they cost."""
