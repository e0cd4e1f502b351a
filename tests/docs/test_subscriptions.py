"""The programs of `docs/subscriptions.md` on WebSub and Durable Streams run as they are, against test servers.

Those on Microsoft Graph and Google run in `tests/listeners/test_subscription_vendors.py`.
"""

import json
import re
from pathlib import Path

import anyio
import httpx
import pytest

from tests.support.channels import TimedChannel
from tests.support.websub_hub import HUB, Hub

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_day", "inline_threads")]

PAGE = (Path(__file__).parents[2] / "docs" / "subscriptions.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

ENTRY = "<entry><id>urn:post:{0}</id><updated>2026-01-0{0}T00:00:00Z</updated><title>Post {0}</title></entry>"


def block_with(*arguments, **names):
    """Return the names that the block with these arguments defines, with `client=client` after each of them."""
    (block,) = (block for block in BLOCKS if arguments[0] in block)
    for argument in arguments:
        assert block.count(argument) == 1
        block = block.replace(argument, f"{argument}, client=client")
    exec(block, names)  # noqa: S102  # it is ours
    return names


def feed_of(*numbers):
    entries = "".join(ENTRY.format(number) for number in reversed(numbers))
    content = f'<feed xmlns="http://www.w3.org/2005/Atom"><id>urn:blog</id>{entries}</feed>'
    headers = {"link": f'<{HUB}>; rel="hub"', "content-type": "application/atom+xml"}
    return httpx.Response(200, headers=headers, content=content.encode())


async def test_the_first_example_subscribes_at_the_hub_and_is_woken_by_it(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("push_to_poll_client.listeners.webhook.monotonic", anyio.current_time)
    async with anyio.create_task_group() as tasks:
        hub = Hub(tasks)
        hub.topic = feed_of(1)
        arguments = 'callback="https://me.example/hooks/blog"', 'AtomFeed("https://blog.example/feed"'
        names = block_with(*arguments, client=hub.client())
        hub.app, posts = names["hooks"], names["posts"]
        tasks.start_soon(posts.run)
        await anyio.sleep(5)
        hub.topic = feed_of(1, 2)
        assert await hub.push() == [200]
        await anyio.sleep(5)
        assert posts.status().listeners[0].up
        posts.stop()
    assert [line.rpartition("+00:00 ")[2] for line in capsys.readouterr().out.splitlines()] == ["Post 1", "Post 2"]


async def test_the_durable_streams_webhook_of_the_page_subscribes():
    requests = []

    async def answer(request):
        requests.append(request)
        return httpx.Response(201, json={}) if request.method == "PUT" else httpx.Response(200, json={"keys": []})

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    hooks = block_with("auth=ask_for_token", client=client, ask_for_token=lambda: "token")["hooks"]
    channel = TimedChannel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hooks.listen, channel)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    assert [event for _, event in channel.events] == ["up"]
    wanted = json.loads(requests[0].content)
    assert (requests[0].method, requests[0].headers["authorization"]) == ("PUT", "Bearer token")
    assert wanted["streams"] == ["orders"]
    assert wanted["webhook"] == {"url": "https://me.example/hooks/orders"}
