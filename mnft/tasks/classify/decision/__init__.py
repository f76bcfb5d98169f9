"""What a classifier says of an image and when it is silent: temperature, threshold, `unknown`."""
