"""Versions of the dataset, side by side: which samples differ, and why."""
