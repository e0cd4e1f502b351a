"""WHAT IS SHARED WITH THE SERVER: secrets as a user gives them, one or several while they are exchanged."""

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Secrets", "keys_of", "texts_of"]

Secrets: TypeAlias = str | bytes | Sequence[str | bytes]
"""A secret, or several of which each is as good as the others: the new one and the old one while they change."""


def keys_of(secrets: Secrets) -> tuple[bytes, ...]:
    """The bytes of each secret; those of a `str` are in UTF-8.

    Raises:
        TypeError: One is neither `str` nor `bytes`.
        ValueError: There is none, or one is empty, or is a `str` with white space around it.
    """
    return tuple(_key_of(secret) for secret in texts_of(secrets))


def texts_of(secrets: Secrets) -> tuple[str | bytes, ...]:
    """Each secret as it was given; what is raised is as for `keys_of`. No error shows any of them."""
    found = (secrets,) if isinstance(secrets, str | bytes) else _several(secrets)
    for secret in found:
        _check(secret)
    return found


def _several(secrets: object) -> tuple[str | bytes, ...]:
    if not isinstance(secrets, Sequence):
        raise TypeError(f"a secret is a str or bytes, or a sequence of them, not {type(secrets).__name__}")
    if not secrets:
        raise ValueError("there is no secret: everybody could have sent what it verifies")
    return tuple(secrets)


def _check(secret: object) -> None:
    if not isinstance(secret, str | bytes):
        raise TypeError(f"a secret is a str or bytes, not {type(secret).__name__}")
    if not secret:
        raise ValueError("a secret is empty: everybody knows it. Is the setting that holds it set?")
    if isinstance(secret, str) and secret != secret.strip():
        # No request would be verified, and nothing would say why. Who means it gives bytes.
        raise ValueError("a secret has white space around it, as the text of a whole file has; strip it")


def _key_of(secret: str | bytes) -> bytes:
    return secret.encode() if isinstance(secret, str) else secret
