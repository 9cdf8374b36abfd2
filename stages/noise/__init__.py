"""Find out which labels and images are wrong."""

from stages.noise.labels import find_label_errors

__all__ = ["find_label_errors"]
