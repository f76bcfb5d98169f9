"""What a trained model gives on images."""
