"""The version of this library. The build reads it from here, so it is known without installing, too."""

__version__ = "0.1.0"
"""As in `pip show push-to-poll-client`."""
