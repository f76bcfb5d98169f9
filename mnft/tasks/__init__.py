"""What a model is trained to do; one folder a task."""
