"""Transformed copies of images for rare classes, and whether labels survive the transforms."""
