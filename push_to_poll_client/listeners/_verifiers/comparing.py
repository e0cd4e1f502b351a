"""WHETHER ONE OF SEVERAL TEXTS IS THE RIGHT ONE, told by the same work wherever they differ."""

import hashlib
import hmac
from collections.abc import Iterable

__all__ = ["AnyOf", "any_equal"]


def any_equal(given: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Whether something given is something expected: all are compared with all, also after one was equal."""
    wanted = tuple(expected)
    # `any` would stop at the first.
    return sum(hmac.compare_digest(one, other) for one in given for other in wanted) > 0


class AnyOf:
    """Tokens that are asked for. What is compared are digests: all have one length, whatever the tokens have.

    Args:
        tokens: Their bytes.
    """

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._digests = tuple(hashlib.sha256(token).digest() for token in tokens)

    def __contains__(self, given: bytes) -> bool:
        return any_equal([hashlib.sha256(given).digest()], self._digests)

    def __len__(self) -> int:
        return len(self._digests)
