"""One module per data set format, each with a function `read(root)`; none knows a task."""
