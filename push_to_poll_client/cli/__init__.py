"""The command line: `push-to-poll`.

Messages go to standard output, one JSON line each; everything else goes to standard error, each error as one
sentence. What the exit codes mean is in `Exit`.
"""

from push_to_poll_client.cli._main import main

__all__ = ["main"]
