"""The head stage: features of the frozen backbone, computed once and kept on the disk."""
