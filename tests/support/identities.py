"""Identities that cost little, for tests that make hundreds."""

from contextlib import contextmanager

import pytest

from push_to_poll_client._http import origins


@contextmanager
def cheap_identities():
    """Make the slow digest a fast one in the block. What it makes is kept nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origins, "_SCRYPT_COST", 2)
        patch.setattr(origins, "_slow_digest", origins._slow_digest.__wrapped__)
        yield
