"""From a source of images to samples: readers, decoding workers, duplicates, leakage and splits."""
