"""Learning from a teacher model: which one, and the loss against its outputs."""
