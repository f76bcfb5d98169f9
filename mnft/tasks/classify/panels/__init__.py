"""The plots of classification: the training curve, the confusion matrix, the mistakes."""
