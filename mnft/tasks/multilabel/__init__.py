"""Multi-label classification: any number of labels for each image, or none."""
