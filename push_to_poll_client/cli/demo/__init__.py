"""What `push-to-poll demo` shows: a consumer that is treated badly, and a count of what it wrote down."""

from push_to_poll_client.cli.demo._conductor import Demo

__all__ = ["Demo"]
