"""Transformed copies: policies of transforms, presets, and whether labels survive them."""
