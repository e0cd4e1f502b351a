"""Fast feed identities, for tests that make hundreds of them."""

from contextlib import contextmanager

import pytest

from push_to_poll_client._http import origins


@contextmanager
def cheap_identities():
    """Use a fast digest instead of the slow one within the block. Nothing is cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origins, "_SCRYPT_COST", 2)
        patch.setattr(origins, "_slow_digest", origins._slow_digest.__wrapped__)
        yield
