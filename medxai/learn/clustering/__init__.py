"""Deep clustering of tiles without labels: autoencoder, refinement, naming of clusters, scores, comparison."""
