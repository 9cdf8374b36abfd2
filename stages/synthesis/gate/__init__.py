"""What made images must pass before they may be trained on, and what was decided about each class."""
