"""The tests of push_to_poll_client; the folders mirror the package."""
