"""Tests of the chest CT recipes."""
