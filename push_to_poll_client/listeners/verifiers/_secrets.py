"""Check and compare the secrets that are shared with a server, in constant time."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import TypeAlias


def any_equal(given: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Return whether any of `given` equals any of `expected`; all pairs are compared, also after an equal one."""
    wanted = tuple(expected)
    # `any` would stop at the first.
    return sum(hmac.compare_digest(one, other) for one in given for other in wanted) > 0


class TokenSet:
    """The tokens of which a request has to show one. Digests are compared, since all have the same length."""

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self._digests = tuple(hashlib.sha256(token).digest() for token in tokens)

    def __contains__(self, given: bytes) -> bool:
        return any_equal([hashlib.sha256(given).digest()], self._digests)

    def __len__(self) -> int:
        return len(self._digests)


Secrets: TypeAlias = str | bytes | Sequence[str | bytes]
"""A secret, or several that are all valid: the new one and the old one while they are exchanged."""


def secret_bytes(secrets: Secrets) -> tuple[bytes, ...]:
    """Return the bytes of each secret; a `str` is encoded in UTF-8.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`.
        ValueError: There is no secret, or one is empty, or is a `str` with white space around it.
    """
    return tuple(secret.encode() if isinstance(secret, str) else secret for secret in check_secrets(secrets))


def check_secrets(secrets: object) -> tuple[str | bytes, ...]:
    """Return each secret as it was given; raises as `secret_bytes` does. No error shows a secret."""
    if isinstance(secrets, str | bytes):
        secrets = (secrets,)
    if not isinstance(secrets, Sequence):
        raise TypeError(f"a secret is a str or bytes, or a sequence of them, not {type(secrets).__name__}")
    if not secrets:
        raise ValueError("there is no secret: everybody could have sent what it verifies")
    found = tuple(secrets)
    for secret in found:
        if not isinstance(secret, str | bytes):
            raise TypeError(f"a secret is a str or bytes, not {type(secret).__name__}")
        if not secret:
            raise ValueError("a secret is empty: everybody knows it. Is the setting that holds it set?")
        if isinstance(secret, str) and secret != secret.strip():
            # No request would be verified, and nothing would say why. A caller who means it gives bytes.
            raise ValueError("a secret has white space around it, as the text of a whole file has; strip it")
    return found
