"""Prediction -> Explanation: the split at the target layer, one method a file, and the way back."""
