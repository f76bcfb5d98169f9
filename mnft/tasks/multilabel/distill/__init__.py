"""Learning from a teacher model, whose sigmoids are compared label by label."""
