"""Where images come from: a reader for each kind of source, and what is settled as they come in."""
