"""What makes training on the CPU faster or smaller."""
