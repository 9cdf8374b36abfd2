"""The GAN: networks, training that can be resumed, and the choice among its snapshots."""
