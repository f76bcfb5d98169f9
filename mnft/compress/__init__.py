"""Smaller models: int8 and fewer channels."""
