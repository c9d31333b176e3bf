"""Training of networks whose weights and activations have few bits."""
