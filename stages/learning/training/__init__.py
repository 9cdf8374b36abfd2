"""The parts of the training loop: batches, the step, checkpoints, signals and memory."""
