"""Whole slides as streams of tiles: opened, levels chosen, tissue found, tiles read, stains and quality looked at."""
