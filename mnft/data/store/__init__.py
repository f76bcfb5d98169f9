"""Decoded images kept on the disk, read by memory mapping."""
