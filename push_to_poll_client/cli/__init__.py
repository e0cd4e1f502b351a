"""The command line: `push-to-poll`."""
