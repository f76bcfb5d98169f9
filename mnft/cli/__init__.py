"""The command line: flags to requests, errors to exit codes."""
