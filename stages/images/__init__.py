"""Images one by one and in pairs: decoding, perceptual hashes, near-duplicates, distances."""
