"""From what was found to samples: duplicates, leakage, splits, planted problems, the base on disk."""
