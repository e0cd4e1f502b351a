"""Run `push-to-poll` as `python -m push_to_poll_client`."""

import sys

from push_to_poll_client.cli import main

sys.exit(main())
