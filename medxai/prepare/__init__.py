"""Volume -> network input and the exact way back to the original voxels."""
