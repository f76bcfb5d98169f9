"""Model files for other runtimes: one module a format, and the table of formats."""
