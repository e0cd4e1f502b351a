"""What `docs/push.md` says of channels is true: its programs run as they stand there, against real servers."""

import gc
import re
from pathlib import Path

import aiomqtt
import anyio
import nats
import pytest
from brokers import MQTT, NATS
from channels import listening

from push_to_poll_client import Push

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parent.parent / "docs" / "push.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

PATIENCE = 20.0
"""Seconds that no test needs."""


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


@pytest.fixture(autouse=True)
def nothing_is_left_unclosed():
    """What the garbage collector has to close makes a ResourceWarning, and that an error: here, not elsewhere."""
    yield
    gc.collect()


@pytest.fixture(params=list(CASES))
def case(request):
    server, *rest = CASES[request.param]
    broker = server()
    broker.start()
    yield broker, *rest
    broker.close()


async def test_a_listener_of_ones_own_wakes_and_outlives_the_death_of_its_broker(case):
    broker, text, there, here, publish, topic = case
    listener = block_with(text, there, here.format(port=broker.port))["listener"]
    listener._fraction = lambda: 0.0
    with anyio.fail_after(PATIENCE):
        async with listening(listener) as channel:
            await channel.saw("up")
            await publish(broker)
            await channel.saw("up", Push(topics=(topic,)))
            broker.kill()
            await channel.saw("up", Push(topics=(topic,)), "down")
            broker.start()
            await channel.sees("up", after="down")
