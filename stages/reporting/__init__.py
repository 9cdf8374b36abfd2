"""The room of pictures, the page and the table that show what a run gave."""
