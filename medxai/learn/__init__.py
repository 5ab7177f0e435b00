"""Training of the shipped bundles: patient-level splits, one plain loop, metrics with intervals."""
