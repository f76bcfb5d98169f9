"""TFLite files, which are written in a Python environment of their own."""
