"""One method a file; see `medxai.explain.method` for the three names each offers."""
