"""What people decide by hand about samples."""
