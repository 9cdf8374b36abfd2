"""Images on their way to the network: batches, and what is done to them at random."""
