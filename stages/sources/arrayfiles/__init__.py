"""Arrays on disk: headers, pairs of images and labels, and rows for a worker process."""
