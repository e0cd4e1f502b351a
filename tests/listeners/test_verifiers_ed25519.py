"""Ed25519: the examples of RFC 8032 are verified, and keys that accept any signature are rejected."""

import sys

import pytest

from push_to_poll_client.listeners.verifiers._ed25519 import public_key, verify

VECTORS = {
    "7.1 TEST 1": (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f05"
            "95bbe24655141438e7a100b"
        ),
    ),
    "7.1 TEST 2": (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb"
            "4302aeeb00d291612bb0c00"
        ),
    ),
    "7.1 TEST 3": (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e97"
            "16ed28dc027beceea1ec40a"
        ),
    ),
    "7.1 TEST SHA(abc)": (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d44236"
            "43ce80e2a9ac94fa54ca49f"
        ),
        (
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c1"
            "38ac17ad9bef1177331a704"
        ),
    ),
}

ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("key", "message", "signature"), VECTORS.values(), ids=VECTORS)
def test_only_unchanged_messages_and_signatures_of_rfc_8032_are_verified(key, message, signature):
    key, message, signature = public_key(bytes.fromhex(key)), bytes.fromhex(message), bytes.fromhex(signature)
    assert verify(key, signature, message)
    assert not verify(key, signature, message + b"!")
    for bit in range(512):
        wrong = (int.from_bytes(signature) ^ 1 << bit).to_bytes(64)
        assert not verify(key, wrong, message)


def test_a_signature_with_s_above_the_group_order_is_refused():
    """RFC 8032 §5.1.7: S is below the order, so that a second signature cannot be made from one."""
    key, _, signature = (bytes.fromhex(text) for text in VECTORS["7.1 TEST 1"])
    s = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(public_key(key), signature[:32] + s.to_bytes(32, "little"), b"")


@pytest.mark.parametrize(
    "signature", [b"", b"x", b"\0" * 63, b"\0" * 64, b"\xff" * 64, b"\0" * 65, b"\0" * 10_000]
)
def test_an_invalid_signature_is_refused_without_an_error(signature):
    for key, _, _ in VECTORS.values():
        assert not verify(public_key(bytes.fromhex(key)), signature, b"")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_that_is_not_32_bytes_long_is_a_value_error(size):
    with pytest.raises(ValueError, match=f"32 bytes, got {size}"):
        public_key(b"\x01" * size)


SMALL = [
    0,
    1,
    0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEC,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    2**255 - 19,
    2**255 - 18,
]


@pytest.mark.parametrize("sign", [0, 1])
@pytest.mark.parametrize("y", SMALL)
def test_a_key_of_small_order_is_refused(y, sign):
    """With a key of 32 zeros, 64 zeros are a signature of every fourth message."""
    with pytest.raises(ValueError, match="anyone can sign for it"):
        public_key((y | sign << 255).to_bytes(32, "little"))


def test_the_import_error_without_cryptography_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(ImportError, match=r"pip install 'push-to-poll-client\[crypto\]'"):
        public_key(b"\x02" * 32)
