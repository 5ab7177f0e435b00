"""From functional and diffusion MRI to what fusion networks see."""
