"""Finding out what is wrong with samples, and deciding what is done about it."""

from stages.noise.labels import find_label_errors

__all__ = ["find_label_errors"]
