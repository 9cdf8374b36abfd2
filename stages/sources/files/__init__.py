"""The files of a source, in a folder or an archive, and how a worker process reads them."""
