"""Learning from a teacher model."""
