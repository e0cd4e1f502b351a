"""The programs of `docs/push.md` run as they are, with the addresses of test servers."""

import hashlib
import inspect
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

from push_to_poll_client import (
    Consumer,
    LongPollListener,
    MemoryStore,
    Push,
    SSEListener,
    WebhookListener,
    WebSocketListener,
)
from push_to_poll_client.listeners.postgres import PostgresListener
from push_to_poll_client.listeners.redis import RedisListener
from push_to_poll_client.listeners.verifiers import github, no_verification
from push_to_poll_client.listeners.webhook import WebhookRequest
from push_to_poll_client.testing import FakeFeed, serve_in_thread
from tests.support.brokers import MQTT, NATS
from tests.support.channels import listening
from tests.support.forms import GUARD
from tests.support.signing import hex_mac

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_unclosed", "quick_backoff")]

PAGE = (Path(__file__).parents[2] / "docs" / "push.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

PLAID = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    """Both clients, of NATS and of MQTT, are asyncio's."""
    return request.param


def block_with(text, addresses, **names):
    """Return the names that the block with this text defines, with the addresses of test servers."""
    (block,) = (block for block in BLOCKS if text in block)
    for there, here in addresses.items():
        assert there in block
        block = block.replace(there, here)
    exec(block, names)  # noqa: S102  # it is ours
    return names


def placeholders():
    """Return the names that the page takes from its reader's program."""
    return {
        "ask_for_token": lambda: "token",
        "files": Consumer(FakeFeed(), store=MemoryStore(), process=print),
        "API_KEY": "key",
        "SECRET": "s3cret",
        "WHSEC": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "OLD_WHSEC": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "plaid_keys": {"k1": PLAID.public_key()},
    }


@pytest.fixture(scope="module")
def program():
    """Return the names that the blocks of the page define, one after the other."""
    names = placeholders()
    for block in BLOCKS:
        exec(block, names)  # noqa: S102  # it is ours
    return names


def test_every_block_of_the_page_runs(program):
    assert len(BLOCKS) >= 15
    assert {"hooks", "verifiers", "couchdb", "dropbox", "syncthing", "signed_by_plaid", "gmail"} <= program.keys()


@pytest.fixture
def server():
    with serve_in_thread(backlog=2) as server:
        yield server


async def wait_until(condition):
    with anyio.fail_after(GUARD):
        while not condition():  # noqa: ASYNC110  # it is true at some time, in another thread or process
            await anyio.sleep(0.01)


async def test_the_first_example_is_woken_by_a_message_of_the_websocket(server, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    addresses = {"wss://shop.example/orders/push": server.push_url, "https://shop.example/orders": server.url}
    orders = block_with("anyio.run(orders.run)", addresses, __name__="example")["orders"]
    lines = []

    def printed(count):
        lines.extend(capsys.readouterr().out.splitlines())
        return len(lines) == count

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(orders.run)
        await wait_until(lambda: printed(2) and orders.status().listeners[0].up)
        (published,) = server.publish([{"cents": 80}])
        await wait_until(lambda: printed(3))
        orders.stop()
    assert re.fullmatch(rf"{published} \{{.*'cents': 80\}}", lines[2])


async def test_the_mounted_webhook_wakes_the_consumer_and_its_address_needs_the_slash(
    server, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hooks = WebhookListener(github("s3cret"))
    ids = []
    names = {"process": lambda message: ids.append(message.id), "hooks": hooks}
    names = block_with("def lifespan", {"https://shop.example/orders": server.url}, **names)
    app, orders = names["app"], names["orders"]
    signature = {"X-Hub-Signature-256": f"sha256={hex_mac(b's3cret', b'{}')}"}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="https://me.example") as client,
    ):
        await wait_until(lambda: len(ids) == 2)
        published = server.publish()
        assert (await client.post("/hooks", content=b"{}", headers=signature)).status_code == 307
        assert (await client.post("/hooks/", content=b"{}")).status_code == 401
        assert (await client.post("/hooks/", content=b"{}", headers=signature)).status_code == 200
        await wait_until(lambda: ids[2:] == published)
    assert orders.status().mode == "stopped"


async def test_the_event_stream_of_the_page_wakes(server):
    listener = block_with("/orders/events", {"https://shop.example/orders/events": server.sse_url})["listener"]
    with anyio.fail_after(GUARD):
        async with listening(listener) as channel:
            await channel.saw("up")
            server.publish()
            await channel.sees(Push(), after="up")


def test_the_dead_connection_times_of_the_page_are_the_defaults():
    def default(listener, name):
        return inspect.signature(listener).parameters[name].default

    rows = dict(re.findall(r"^\| .*?`(\w+Listener)(?:`|\().*\| (.*) \|$", PAGE, re.MULTILINE))
    pings = default(WebSocketListener, "ping_interval") + default(WebSocketListener, "ping_timeout")
    assert rows["WebSocketListener"] == f"{pings:.0f} s, by pings"
    assert rows["SSEListener"] == f"{default(SSEListener, 'max_silence'):.0f} s of silence"
    wait = default(LongPollListener, "wait") + default(LongPollListener, "open_timeout")
    assert rows["LongPollListener"] == f"{wait:.0f} s: `wait` plus `open_timeout`"
    for listener, how in (PostgresListener, "a query"), (RedisListener, "a ping"):
        silence = default(listener, "max_silence") + default(listener, "open_timeout")
        assert rows[listener.__name__] == f"{silence:.0f} s, by {how}"


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


async def test_the_handshakes_of_the_page_are_answered(program):
    okta = WebhookListener(no_verification(), handshake=program["okta"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(okta), base_url="https://me.example") as client:
        answer = await client.get("/", headers={"x-okta-verification-challenge": "4711"})
    assert (answer.status_code, answer.json()) == (200, {"verification": "4711"})
    graph = WebhookListener(no_verification(), handshake=program["handshakes"]["Microsoft Graph"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(graph), base_url="https://me.example") as client:
        assert (await client.post("/", params={"validationToken": "4711"})).text == "4711"


def test_the_hints_of_the_page_read_the_messages_of_their_vendors(program):
    assert program["gmail"](b'{"historyId": 17, "emailAddress": "me@me.example"}') == Push(
        "17", ("me@me.example",)
    )
    assert program["graph"](b'{"value": [{"resource": "a"}, {"resource": "b"}]}') == Push(topics=("a", "b"))
    assert program["autopush"]('{"messageType": "hello"}') is None
    assert program["own"]("changed 17") == Push("17")
    assert program["own"]("hello") is None
    for event, push in ("open", None), ("keepalive", None), ("message", Push()):
        assert program["ntfy"]._hints.read(f'{{"event": "{event}"}}', "ntfy") == push


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
    listener = block_with(text, {there: here.format(port=broker.port)})["listener"]
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
