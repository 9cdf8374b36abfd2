"""The networks that a recipe can name, and the layers that our own are built of."""
