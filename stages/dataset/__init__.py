"""Hold the data contract: the immutable base, the overlays on it, and files that are whole or not there."""
