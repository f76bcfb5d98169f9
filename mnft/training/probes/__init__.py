"""Measurements on a training that is thrown away."""
