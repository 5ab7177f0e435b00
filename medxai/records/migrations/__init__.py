"""Alembic's scripts for the worklist database."""
