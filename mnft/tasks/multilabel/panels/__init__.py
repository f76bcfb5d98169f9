"""The plots of several labels an image: the training curve, precision and recall."""
