"""`python -m push_to_poll_client` is `push-to-poll`."""

import sys

from push_to_poll_client.cli import main

sys.exit(main())
