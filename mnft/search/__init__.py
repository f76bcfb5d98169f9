"""Many trainings of one config with different values, and an honest choice among them."""
