"""A trained model on images: which model, which images, its outputs, and what follows."""
