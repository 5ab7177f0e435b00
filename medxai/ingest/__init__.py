"""Bytes -> Study: discovery, readers one format a file, and the geometry check."""
