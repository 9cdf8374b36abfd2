"""From items to pixels: decoding in worker processes, hashes, and the columns of what was found."""
