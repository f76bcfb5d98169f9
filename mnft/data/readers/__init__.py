"""One file for each format of data sets on the disk; each has `read(root)`, and knows no task."""
