"""Tables that people wrote: their columns, and cells that can be wrong in any way."""
