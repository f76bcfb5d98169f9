"""Fewer channels in each layer."""
