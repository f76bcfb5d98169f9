"""TFLite files, written in an environment of their own."""
