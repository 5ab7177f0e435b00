"""Prefect flows: thin tasks round medxai's functions. Nothing in medxai imports them."""
