"""Model bundles in and out, windows over large volumes, and the decision."""
