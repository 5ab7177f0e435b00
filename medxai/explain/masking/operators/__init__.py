"""One operator a file; see `medxai.explain.masking.operator` for the two names each offers."""
