"""Verify Ed25519 signatures (RFC 8032) with `cryptography`, from the extra `crypto`."""

from importlib import import_module
from typing import Any, TypeAlias

from push_to_poll_client._validation import missing_dependency

KEY_SIZE = 32
"""Bytes of a public key (RFC 8032 §5.1.5)."""

PublicKey: TypeAlias = Any

_PRIME = 2**255 - 19

_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
"""The y of half of the points of order 8; the others have its negative."""

# With such a key, anyone can write signatures that fit one message in eight, or every message.
_WEAK = frozenset({0, 1, _PRIME - 1, _PRIME, _PRIME + 1, _ORDER_8, _PRIME - _ORDER_8})
"""The y of all points of small order, in all encodings. OpenSSL accepts these keys."""


def public_key(raw: bytes) -> PublicKey:
    """Build a public key from 32 bytes, or raise `ValueError` if they are not a key or a weak one."""
    try:
        ed25519 = import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise missing_dependency(
            "An Ed25519 signature", "cryptography", error, remedy="pip install 'push-to-poll-client[crypto]'"
        ) from error
    if len(raw) != KEY_SIZE:
        raise ValueError(f"an Ed25519 public key must have {KEY_SIZE} bytes, got {len(raw)}")
    if int.from_bytes(raw, "little") % 2**255 in _WEAK:
        raise ValueError("the Ed25519 public key is weak, such as 32 zeros: anyone can sign for it")
    return ed25519.Ed25519PublicKey.from_public_bytes(bytes(raw))


def verify(key: PublicKey, signature: bytes, message: bytes) -> bool:
    """Return True if the signature fits. Any signature of 64 bytes takes the same time. Never raises."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
