"""The verifiers agree with the signers' own libraries: both accept and reject the same requests.

Each intended difference is a row of `DIFFERENCES`, with an example.
"""

import base64
import binascii
import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import standardwebhooks
import standardwebhooks.webhooks
import stripe as stripe_library
import stripe._webhook as stripe_webhook
import svix as svix_library
from hypothesis import given, settings
from hypothesis import strategies as st

from push_to_poll_client.listeners.verifiers import github, standard_webhooks, stripe, svix
from tests.support.forms import form
from tests.support.github_signatures import octokit
from tests.support.signing import NOW, b64_mac, hex_mac, request

MANY = settings(max_examples=form(10, 5000))


class Case(NamedTuple):
    """A request: for Stripe and GitHub `signature` is the header, for Standard Webhooks one of its three."""

    secret: str
    body: bytes
    signature: str
    timestamp: str = ""
    message_id: str = ""


SECRET = "whsec_" + base64.b64encode(b"0123456789abcdefghijklmn").decode()


# The libraries, with a fixed time


class Frozen(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, tz)


@pytest.fixture(scope="module", autouse=True)
def _clocks():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(standardwebhooks.webhooks, "datetime", Frozen)
        patched.setattr(stripe_webhook, "time", SimpleNamespace(time=lambda: NOW))
        yield


@pytest.fixture(scope="module")
def library():
    with octokit() as found:
        yield found


NOES = (
    standardwebhooks.WebhookVerificationError,
    stripe_library.SignatureVerificationError,
    ValueError,  # raised by the libraries for a malformed list, or a body that is not text
    TypeError,  # raised by Stripe's library for a signature that is not ASCII
)


def says(verify, *arguments, **named):
    """Return True if a library accepts the request."""
    try:
        verify(*arguments, **named)
    except NOES:
        return False
    return True


def headers_of(case, names="webhook"):
    return {
        f"{names}-id": case.message_id,
        f"{names}-timestamp": case.timestamp,
        f"{names}-signature": case.signature,
    }


def standard_says(case):
    return says(standardwebhooks.Webhook(case.secret).verify, case.body, headers_of(case), json_parse=False)


def svix_says(case):
    return says(svix_library.Webhook(case.secret).verify, case.body, headers_of(case, "svix"))


def stripe_says(case):
    return says(stripe_library.WebhookSignature.verify_header, case.body, case.signature, case.secret, 300)


def came(case, names="webhook"):
    return request(case.body, **{name.replace("-", "_"): value for name, value in headers_of(case, names).items()})


def we_say_standard(case):
    return bool(standard_webhooks(case.secret)(came(case)))


def we_say_svix(case):
    return bool(svix(case.secret)(came(case, "svix")))


def we_say_stripe(case):
    return bool(stripe(case.secret.encode())(request(case.body, Stripe_Signature=case.signature)))


def we_say_github(case):
    return bool(github(case.secret.encode())(request(case.body, X_Hub_Signature_256=case.signature)))


# Intended differences


class Difference(NamedTuple):
    """An intended difference.

    Attributes:
        ours: Our result: True where this library is more lenient.
        where: Returns True if a case is of this kind.
        why: The reason.
        example: A case with this difference.
    """

    ours: bool
    where: object
    why: str
    example: Case


def standard_case(signed="msg_1.1700000000.{}", *, timestamp="1700000000", layout="{}", body=b"{}"):
    mac = b64_mac(base64.b64decode(SECRET.removeprefix("whsec_")), signed.encode("latin-1"))
    return Case(SECRET, body, layout.format(f"v1,{mac}"), timestamp, "msg_1")


def items(case):
    return case.signature.split(" ")


def is_spelled_oddly(item):
    _, _, text = item.partition(",")
    try:
        return base64.b64encode(base64.b64decode(text)).decode() != text
    except ValueError:
        return True


def is_text(body):
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


STANDARD = {
    "a timestamp that is no plain integer": Difference(
        ours=False,
        where=lambda case: not re.fullmatch("[1-9][0-9]*", case.timestamp, re.ASCII),
        why="the specification has an integer; the libraries take what float() takes, and verify its floor",
        example=standard_case(timestamp="1700000000.7"),
    ),
    "Base64 that is spelled otherwise": Difference(
        ours=False,
        where=lambda case: any(is_spelled_oddly(item) for item in items(case)),
        why="one signature has one spelling; the libraries pass over characters that are none of Base64",
        example=standard_case(layout="{}!"),
    ),
    "a long list": Difference(
        ours=False,
        where=lambda case: len(items(case)) > 16,
        why="what is compared is bounded",
        example=standard_case(layout="v1,AAAA " * 16 + "{}"),
    ),
    "a malformed item beside a good one": Difference(
        ours=True,
        where=lambda case: any(item.count(",") != 1 or is_spelled_oddly(item) for item in items(case)),
        why="it is not the good one; the libraries raise ValueError or binascii.Error and look no further",
        example=standard_case(layout="v2 {}"),
    ),
    "a body that is no text": Difference(
        ours=True,
        where=lambda case: not is_text(case.body),
        why="bytes were signed; the libraries raise UnicodeDecodeError",
        example=standard_case("msg_1.1700000000.\xff", body=b"\xff"),
    ),
}


def stripe_case(layout="t=1700000000,v1={}", *, signed=b"1700000000.{}", body=b"{}", secret="whsec_a"):  # noqa: S107  # a test's
    return Case(secret, body, layout.format(hex_mac(secret.encode(), signed)))


def fields(case, name):
    return [item.partition("=")[2] for item in case.signature.split(",") if item.partition("=")[0] == name]


def is_in_the_future(case):
    try:
        return int(fields(case, "t")[0]) > NOW + 300
    except (IndexError, ValueError):
        return False


STRIPE = {
    "a timestamp from the future": Difference(
        ours=False,
        where=is_in_the_future,
        why="it could be repeated until then; the library looks at its age alone",
        example=stripe_case("t=1700000301,v1={}", signed=b"1700000301.{}"),
    ),
    "a timestamp that is no plain integer": Difference(
        ours=False,
        where=lambda case: not all(re.fullmatch("[1-9][0-9]*", one, re.ASCII) for one in fields(case, "t")),
        why="the library takes what int() takes, and verifies another text than came",
        example=stripe_case("t=+1_700_000_000,v1={}"),
    ),
    "two timestamps": Difference(
        ours=False,
        where=lambda case: len(fields(case, "t")) > 1,
        why="nothing says which was signed; the library takes the first",
        example=stripe_case("t=1700000000,v1={},t=1"),
    ),
    "more behind a value": Difference(
        ours=False,
        where=lambda case: any(item.count("=") > 1 for item in case.signature.split(",")),
        why="it is no such value; the library leaves out what stands behind a second =",
        example=stripe_case("t=1700000000,v1={}=junk"),
    ),
    "a long list": Difference(
        ours=False,
        where=lambda case: case.signature.count(",") >= 16,
        why="what is compared is bounded",
        example=stripe_case("v1=0," * 15 + "t=1700000000,v1={}"),
    ),
    "a name alone beside good ones": Difference(
        ours=True,
        where=lambda case: {"t", "v1"} & {*case.signature.split(",")},
        why="it is none of the good ones; the library cannot read such a header",
        example=stripe_case("v1,t=1700000000,v1={}"),
    ),
    "capitals": Difference(
        ours=True,
        where=lambda case: case.signature != case.signature.lower(),
        why="hex is hex; the library compares texts",
        example=stripe_case(
            "t=1700000000,v1=" + hex_mac(b"whsec_a", b"1700000000.{}").upper(),
        ),
    ),
    "a body that is no text": Difference(
        ours=True,
        where=lambda case: not is_text(case.body),
        why="bytes were signed; the library raises UnicodeDecodeError",
        example=stripe_case(signed=b"1700000000.\xff", body=b"\xff"),
    ),
}

GITHUB = {
    "an empty body": Difference(
        ours=True,
        where=lambda case: not case.body,
        why="it is signed as any; the library raises TypeError",
        example=Case("s", b"", "sha256=" + hex_mac(b"s", b"")),
    ),
    "capitals": Difference(
        ours=True,
        where=lambda case: case.signature[7:] != case.signature[7:].lower(),
        why="hex is hex; the library compares texts",
        example=Case("s", b"{}", "sha256=" + hex_mac(b"s", b"{}").upper()),
    ),
}

DIFFERENCES = {
    "Standard Webhooks": (standard_says, we_say_standard, STANDARD),
    "Svix": (svix_says, we_say_svix, STANDARD),
    "Stripe": (stripe_says, we_say_stripe, STRIPE),
}


@pytest.mark.parametrize(
    ("theirs", "ours", "difference"),
    [
        pytest.param(theirs, ours, difference, id=f"{vendor}: {name}")
        for vendor, (theirs, ours, differences) in DIFFERENCES.items()
        for name, difference in differences.items()
    ],
)
def test_each_listed_difference_from_a_library_exists(theirs, ours, difference):
    assert difference.why
    assert difference.where(difference.example)
    assert ours(difference.example) is difference.ours
    assert theirs(difference.example) is not difference.ours


@pytest.mark.parametrize("difference", GITHUB.values(), ids=GITHUB)
def test_each_listed_difference_from_octokit_exists(library, difference):
    example = difference.example
    assert difference.where(example)
    assert we_say_github(example) is difference.ours
    assert library.verify(example.secret, example.body.decode(), example.signature) is not difference.ours


def agree(case, theirs, ours, differences):
    expected = [one.ours for one in differences.values() if one.where(case)]
    assert ours == theirs or ours in expected, "they differ, and no row says why"


# Generated cases


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)
junk = st.sampled_from(
    ["", "=", ",", " ", "v1", "t", "t=", "v1=", "v1,", "v2,AA", "v1a,AAAA", "0", "!", "A", "f", "\t", "é"]
)
times = st.sampled_from([0, 1, -1, 299, 300, 301, -299, -300, -301, 10**6, -NOW, 10**12]).map(
    lambda away: str(NOW + away)
)
times_within = st.integers(-300, 300).map(lambda away: str(NOW + away))
odd = [
    "",
    "nan",
    "1e9",
    "1700000000.0",
    "1700000000.5",
    "+1700000000",
    " 1700000000",
    "1_700_000_000",
    "01700000000",
]
odd_times = times | st.sampled_from([*odd, "\u0661\u0667" + "\u0660" * 8, "-1", "inf", "1700000000x"])


def mutated(draw, text):
    """Cut out or copy pieces, insert junk, change case."""
    for _ in range(draw(st.integers(1, 3))):
        start, stop = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        ways = [
            text[:start] + text[stop:],
            text[:stop] + text[start:stop] + text[stop:],
            text[:start] + draw(junk) + text[start:],
            text[:start] + draw(junk) + text[stop:],
            text[:start] + text[start:stop].swapcase() + text[stop:],
        ]
        text = draw(st.sampled_from(ways))
    return text


def odd_about(draw):
    """Return the odd parts of a case: at most two, otherwise hardly any case would be valid."""
    return draw(st.sets(st.sampled_from(["time", "bytes", "list", "spelling", "id", "forged"]), max_size=2))


def listed(draw, good, others, odd):
    """Return a good signature and, if it is odd, others around it."""
    if "list" not in odd:
        return [good]
    size = draw(st.sampled_from([1, 4, 20]))
    return draw(st.lists(st.sampled_from([good, *others, draw(junk)]), min_size=1, max_size=size))


def message(draw, odd):
    timestamp = draw(odd_times if "time" in odd else times_within)
    return draw(st.binary(max_size=40) if "bytes" in odd else texts.map(str.encode)), timestamp


@st.composite
def standard_cases(draw):
    odd = odd_about(draw)
    body, timestamp = message(draw, odd)
    message_id = draw(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size="id" not in odd, max_size=12)
    )
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    good = f"v1,{b64_mac(key, f'{message_id}.{timestamp}.'.encode('utf-8', 'replace') + body)}"
    others = ["v1," + b64_mac(b"x", body), "v1,", "v2,abc", "v1a,AAAA"]
    signature = " ".join(listed(draw, good, others, odd))
    signature = mutated(draw, signature) if "spelling" in odd else signature
    message_id = mutated(draw, message_id) if {"forged", "id"} <= odd else message_id
    return Case(SECRET, body + b"!" if "forged" in odd else body, signature, timestamp, message_id)


@st.composite
def stripe_cases(draw):
    odd = odd_about(draw)
    secret = draw(st.sampled_from(["whsec_a", "s", "ключ", "x" * 100]))
    body, timestamp = message(draw, odd)
    good = f"v1={hex_mac(secret.encode(), f'{timestamp}.'.encode() + body)}"
    others = ["v1=" + "0" * 64, "v0=" + "0" * 64, f"t={timestamp}"]
    signature = ",".join([f"t={timestamp}", *listed(draw, good, others, odd)])
    signature = mutated(draw, signature) if "spelling" in odd else signature
    return Case(secret, body + b"!" if "forged" in odd else body, signature)


@st.composite
def github_cases(draw):
    odd = odd_about(draw)
    secret = draw(st.sampled_from(["It's a Secret to Everybody", "s", "ключ", "x" * 100]))
    body = draw(texts).encode()
    signature = ", ".join(listed(draw, f"sha256={hex_mac(secret.encode(), body)}", ["sha256=" + "0" * 64], odd))
    signature = mutated(draw, signature) if "spelling" in odd else signature
    return Case(secret, body + b"!" if "forged" in odd else body, signature)


# The libraries sign


secrets = texts.filter(lambda text: text.strip())


@MANY
@given(
    body=texts, message_id=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), data=st.data()
)
def test_signatures_made_by_standardwebhooks_and_svix_are_verified(body, message_id, data):
    key = data.draw(st.binary(min_size=1, max_size=64))
    at = NOW + data.draw(st.integers(-300, 300))
    for library in (standardwebhooks.Webhook(key), svix_library.Webhook(key)):
        signature = library.sign(message_id, datetime.fromtimestamp(at, UTC), body)
        case = Case("", body.encode(), signature, str(at), message_id)
        for verify in (standard_webhooks(key), svix(key), standard_webhooks(base64.b64encode(key).decode())):
            assert verify(came(case))
            assert not verify(came(case._replace(body=body.encode() + b"!")))
        assert svix(key)(came(case, "svix"))


@MANY
@given(body=texts, secret=secrets, away=st.integers(-300, 300))
def test_signatures_made_by_stripe_are_verified(body, secret, away):
    make = stripe_library.WebhookSignature.generate_signature_header
    header = make(body, secret, timestamp=NOW + away)
    assert stripe(secret.encode())(request(body.encode(), Stripe_Signature=header))
    assert not stripe(secret.encode())(request(body.encode() + b"!", Stripe_Signature=header))


@MANY
@given(body=texts.filter(bool), secret=secrets)
def test_signatures_made_by_octokit_are_verified(library, body, secret):
    header = library.sign(secret, body)
    assert github(secret.encode())(request(body.encode(), X_Hub_Signature_256=header))
    assert not github(secret.encode())(request(body.encode() + b"!", X_Hub_Signature_256=header))


# The libraries verify


@MANY
@given(case=standard_cases())
def test_results_agree_with_standardwebhooks_and_svix(case):
    agree(case, standard_says(case), we_say_standard(case), STANDARD)
    agree(case, svix_says(case), we_say_svix(case), STANDARD)


@MANY
@given(case=stripe_cases())
def test_results_agree_with_stripe(case):
    agree(case, stripe_says(case), we_say_stripe(case), STRIPE)


@MANY
@given(case=github_cases())
def test_results_agree_with_octokit(library, case):
    agree(case, library.verify(case.secret, case.body.decode(), case.signature), we_say_github(case), GITHUB)


def test_standardwebhooks_raises_undocumented_errors():
    """This is the reason for not using the library as a verifier."""
    webhook = standardwebhooks.Webhook(SECRET)
    for signature, body, error in (
        ("v1", b"", ValueError),
        ("v1,A", b"", binascii.Error),
        ("v1,AAAA", b"\xff", UnicodeDecodeError),
        ("v1,é", b"", ValueError),
    ):
        with pytest.raises(error):
            webhook.verify(body, headers_of(Case("", b"", signature, str(NOW), "msg_1")))
