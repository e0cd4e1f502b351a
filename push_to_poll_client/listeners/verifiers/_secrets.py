"""Secrets shared with a server, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from typing import TypeAlias

__all__ = [
    "Secrets",
    "TokenSet",
    "any_equal",
    "check_secrets",
    "secret_bytes",
]


def any_equal(given: Iterable[bytes], expected: Iterable[bytes]) -> bool:
    """Whether something given is something expected: all are compared with all, also after one was equal."""
    wanted = tuple(expected)
    # `any` would stop at the first.
    return sum(hmac.compare_digest(one, other) for one in given for other in wanted) > 0


class TokenSet:
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


Secrets: TypeAlias = str | bytes | Sequence[str | bytes]
"""A secret, or several of which each is as good as the others: the new one and the old one while they change."""


def secret_bytes(secrets: Secrets) -> tuple[bytes, ...]:
    """The bytes of each secret; those of a `str` are in UTF-8.

    Raises:
        TypeError: One is neither `str` nor `bytes`.
        ValueError: There is none, or one is empty, or is a `str` with white space around it.
    """
    return tuple(_to_bytes(secret) for secret in check_secrets(secrets))


def check_secrets(secrets: Secrets) -> tuple[str | bytes, ...]:
    """Each secret as it was given; what is raised is as for `secret_bytes`. No error shows any of them."""
    found = (secrets,) if isinstance(secrets, str | bytes) else _check_sequence(secrets)
    for secret in found:
        _check_secret(secret)
    return found


def _check_sequence(secrets: object) -> tuple[str | bytes, ...]:
    if not isinstance(secrets, Sequence):
        raise TypeError(f"a secret is a str or bytes, or a sequence of them, not {type(secrets).__name__}")
    if not secrets:
        raise ValueError("there is no secret: everybody could have sent what it verifies")
    return tuple(secrets)


def _check_secret(secret: object) -> None:
    if not isinstance(secret, str | bytes):
        raise TypeError(f"a secret is a str or bytes, not {type(secret).__name__}")
    if not secret:
        raise ValueError("a secret is empty: everybody knows it. Is the setting that holds it set?")
    if isinstance(secret, str) and secret != secret.strip():
        # No request would be verified, and nothing would say why. Who means it gives bytes.
        raise ValueError("a secret has white space around it, as the text of a whole file has; strip it")


def _to_bytes(secret: str | bytes) -> bytes:
    return secret.encode() if isinstance(secret, str) else secret
