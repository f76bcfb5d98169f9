"""The head on features of the frozen backbone."""
