"""Transfer: where a backbone comes from, and how it is adapted to the data at hand."""
