"""The command line: `push-to-poll`.

Messages go to standard output, one JSON line each. Everything else goes to standard error, and an error is one
sentence. `EXIT_CODES` in `_output.py` documents the exit codes.
"""

from push_to_poll_client.cli._main import main

__all__ = ["main"]
