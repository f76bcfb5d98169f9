"""What makes training on the CPU faster, or lets it take less memory."""
