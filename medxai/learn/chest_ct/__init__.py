"""Chest CT: synthetic cases in number, three real patients, and the shipped bundle."""
