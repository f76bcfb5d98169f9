"""mnft: from a folder of images to a small, verified model."""

__version__ = "0.1.0"
