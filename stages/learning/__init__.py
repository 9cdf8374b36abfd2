"""Models, the one training loop, and figures about what they learned."""
