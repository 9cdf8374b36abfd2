"""Measurements on a GPU: one command each, ten minutes at most, a table at the end."""
