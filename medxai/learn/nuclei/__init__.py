"""Nuclei from one point each: labels that are chosen anew while the network learns (DoNuSeg), and their proof."""
