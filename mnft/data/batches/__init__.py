"""Batches of images on the device, from files or from the store."""
