"""What `docs/push.md` says of channels is true: its programs run as they stand there, against real servers."""

import hashlib
import re
import time
from pathlib import Path

import aiomqtt
import anyio
import httpx
import jwt
import nats
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from push_to_poll_client import Consumer, MemoryStore, Push, WebhookListener
from push_to_poll_client.listeners.webhook import WebhookRequest
from push_to_poll_client.testing import FakeFeed
from tests.support.brokers import MQTT, NATS
from tests.support.channels import listening
from tests.support.forms import GUARD

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_unclosed")]

PAGE = (Path(__file__).parents[2] / "docs" / "push.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

PLAID = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    """Both clients, of NATS and of MQTT, are asyncio's."""
    return request.param


def block_with(text, there, here):
    """What the block of the page defines in which the text stands, with the server of the test in it."""
    (block,) = (block for block in BLOCKS if text in block)
    names = {}
    exec(block.replace(there, here), names)  # noqa: S102  # it is ours
    return names


def placeholders():
    """What the page takes from its reader's program."""
    feed, store = FakeFeed(), MemoryStore()
    return {
        "ask_for_token": lambda: "token",
        "files": Consumer(feed, store=store, process=print),
        "API_KEY": "key",
        "SECRET": "s3cret",
        "WHSEC": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "OLD_WHSEC": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "Consumer": Consumer,
        "plaid_keys": {"k1": PLAID.public_key()},
        "feed": feed,
        "store": store,
        "process": print,
        "listeners": (),
    }


@pytest.fixture(scope="module")
def program():
    """All of the page's blocks, one after the other."""
    names = placeholders()
    for block in BLOCKS:
        exec(block, names)  # noqa: S102  # it is ours
    return names


def test_every_block_of_the_page_runs(program):
    assert len(BLOCKS) >= 15
    assert {"hooks", "verifiers", "couchdb", "dropbox", "syncthing", "signed_by_plaid", "gmail"} <= program.keys()


def test_the_verifiers_of_the_page_refuse_an_unsigned_request(program):
    for verify in program["verifiers"].values():
        assert not verify(WebhookRequest(body=b'{"value": [{"clientState": "other"}]}'))


def jwt_of(body, *, at, kid="k1", key=PLAID):
    claims = {"iat": at, "request_body_sha256": hashlib.sha256(body).hexdigest()}
    return jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})


async def test_the_jwt_verifier_of_the_page_accepts_only_valid_and_recent_tokens(program):
    now = int(time.time())
    other = ec.generate_private_key(ec.SECP256R1())
    cases = [
        (jwt_of(b"{}", at=now), b"{}", 200),
        (jwt_of(b"{}", at=now), b"{ }", 401),
        (jwt_of(b"{}", at=now - 301), b"{}", 401),
        (jwt_of(b"{}", at=now, kid="k2"), b"{}", 401),
        (jwt_of(b"{}", at=now, key=other), b"{}", 401),
        ("no jwt", b"{}", 401),
        ("", b"{}", 401),
    ]
    app = httpx.ASGITransport(WebhookListener(program["signed_by_plaid"]))
    async with httpx.AsyncClient(transport=app, base_url="https://me.example") as client:
        for token, body, status in cases:
            answer = await client.post("/hooks", content=body, headers={"plaid-verification": token})
            assert answer.status_code == status, (token, body)


async def mqtt_publish(broker):
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        await client.publish("orders/7", b"", qos=1)


async def nats_publish(broker):
    client = await nats.connect(f"nats://127.0.0.1:{broker.port}")
    await client.publish("orders.7", b"")
    await client.close()


CASES = {
    "mqtt": (MQTT, 'name="mqtt orders"', '"broker.example"', '"127.0.0.1", {port}', mqtt_publish, "orders/7"),
    "nats": (
        NATS,
        'name="nats orders"',
        "nats://nats.example",
        "nats://127.0.0.1:{port}",
        nats_publish,
        "orders.7",
    ),
}


@pytest.fixture(params=list(CASES))
def case(request):
    server, *rest = CASES[request.param]
    broker = server()
    broker.start()
    yield broker, *rest
    broker.close()


async def test_the_listeners_of_the_page_wake_and_reconnect_after_their_broker_restarts(case):
    broker, text, there, here, publish, topic = case
    listener = block_with(text, there, here.format(port=broker.port))["listener"]
    listener._fraction = lambda: 0.0
    with anyio.fail_after(GUARD):
        async with listening(listener) as channel:
            await channel.saw("up")
            await publish(broker)
            await channel.saw("up", Push(topics=(topic,)))
            broker.kill()
            await channel.saw("up", Push(topics=(topic,)), "down")
            broker.start()
            await channel.sees("up", after="down")
