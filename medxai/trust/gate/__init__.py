"""The gate: a few forwards for each map, thresholds learnt from broken explanations, a verdict in words."""
