"""One epoch of training."""
