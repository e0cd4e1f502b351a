"""What README shows is run as it stands; only the addresses are those of a server that exists."""

import dataclasses
import inspect
import itertools
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest
import respx

from push_to_poll_client import Consumer, MemoryStore
from push_to_poll_client.cli import main
from push_to_poll_client.testing import FakeFeed, serve_in_thread
from tests.feeds.test_paged_vendors import walk
from tests.support.forms import GUARD
from tests.vendors.github import GitHub

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def server():
    with serve_in_thread(backlog=3) as server:
        yield server


def block_with(text):
    """The one in which it stands."""
    (block,) = (block for block in blocks("python") if text in block)
    return block


def at(text, server):
    """The same text, with the reference server's addresses and the name that it has for a cursor."""
    text = text.replace("wss://shop.example/orders/push", server.push_url).replace('"after"', '"lastEventId"')
    return text.replace("https://shop.example/orders", server.url)


def test_the_first_readme_example_runs_and_has_at_most_fifteen_lines(server, capsys, monkeypatch, tmp_path):
    block = blocks("python")[0]
    assert len([line for line in block.splitlines() if line]) <= 15
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Consumer, "run", stops_after(Consumer.run, 3))
    exec(compile(at(block, server), "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102  # it is ours
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [f"{n:012d}" for n in (1, 2, 3)]
    assert (tmp_path / "orders.db").exists()


def stops_after(run, count):
    """`Consumer.run`, which stops when it has processed so many messages."""

    async def run_and_stop(self):
        process, numbers = self._open_session.options.handler, itertools.count(1)

        async def counted(message):
            await process(message)
            if next(numbers) == count:
                self.stop()

        self._open_session.options = dataclasses.replace(self._open_session.options, handler=counted)
        with anyio.fail_after(GUARD):
            await run(self)

    return run_and_stop


def test_the_transactional_readme_example_moves_money_exactly_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("bank.db")) as connection, connection:
        connection.execute("CREATE TABLE account(name TEXT PRIMARY KEY, cents INTEGER CHECK(cents >= 0))")
        connection.executemany("INSERT INTO account VALUES (?, ?)", [("a", 100), ("b", 0)])
    space = {}

    async def poll():
        bank = space["bank"]
        bank._open_session.options = dataclasses.replace(
            bank._open_session.options, retry=None
        )  # which takes real time
        await bank.poll_now()
        return await bank.dead_letters.list()

    with serve_in_thread() as server:
        server.publish([{"from": "a", "to": "b", "cents": cents} for cents in (30, 500, 20)])
        server.publish([{"from": "a", "to": "nobody", "cents": 1}])
        block = block_with("transfer(message)").replace("https://bank.example/transfers", server.url)
        exec(compile(block, "README.md", "exec"), space)  # noqa: S102  # it is ours
        letters = anyio.run(poll)
    with closing(sqlite3.connect("bank.db")) as connection:
        assert dict(connection.execute("SELECT name, cents FROM account")) == {"a": 50, "b": 50}
    assert [letter.error.split(":")[0] for letter in letters] == ["IntegrityError", "DeadLetterMessage"]


def test_the_typed_readme_example_gives_the_handler_decoded_data(server, capsys):
    space = {}
    exec(compile(at(block_with("TypedOrders"), server), "README.md", "exec"), space)  # noqa: S102  # it is ours
    server.publish([{"customer": "Ada", "cents": 995}, {"customer": "Ada", "cents": "a few"}])

    async def poll():
        store = MemoryStore()
        orders = space["TypedOrders"](
            space["feed"], store=store, name="orders", on_failure="dead_letter", retry=None
        )
        await orders.catch_up()
        return await orders.dead_letters.list()

    *backlog, letter = anyio.run(poll)
    assert capsys.readouterr().out == "995\n"
    assert len(backlog) == 3
    assert "Expected `int`, got `str` - at `$.cents`" in letter.error


def test_the_paged_feed_readme_example_reads_all_events():
    space = {}
    exec(compile(block_with("events = PagedFeed("), "README.md", "exec"), space)  # noqa: S102  # it is ours
    feed, github = space["events"], GitHub(5)
    github.origin, github.path = "https://api.github.com", "/repos/python/cpython/events"
    github.authorization = None

    async def read():
        try:
            return await walk(feed, None)
        finally:
            await feed.aclose()

    with respx.mock() as router:
        router.route(host="api.github.com").mock(side_effect=github.handle)
        messages, _ = anyio.run(read)
    assert [message.id for message in messages] == [event["id"] for event in github.entries]


def test_the_webhook_readme_example_is_a_listener_and_an_asgi_application():
    space = {}
    exec(compile(block_with("WebhookListener("), "README.md", "exec"), space)  # noqa: S102  # it is ours
    assert Consumer(FakeFeed(), store=MemoryStore(), process=print, listeners=[space["hooks"]])
    client = httpx.AsyncClient(transport=httpx.ASGITransport(space["hooks"]), base_url="https://me.example")
    assert anyio.run(client.post, "/hooks").status_code == httpx.codes.UNAUTHORIZED


def test_the_custom_feed_readme_example_reads_all_messages():
    space = {}
    exec(compile(block_with("class Tickets:"), "README.md", "exec"), space)  # noqa: S102  # it is ours
    tickets = [{"id": "1"}, {"id": "2"}]

    def answer(request):
        after = request.url.params["after"]
        return httpx.Response(200, json=[ticket for ticket in tickets if ticket["id"] > after])

    async def poll():
        seen = []

        async def process(message):
            seen.append(message.data)

        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="https://shop.example", transport=transport) as client:
            consumer = space["Consumer"](space["Tickets"](client), store=space["MemoryStore"](), process=process)
            results = [await consumer.poll_now() for _ in range(3)]
        return seen, [result.caught_up for result in results]

    assert anyio.run(poll) == (tickets, [True] * 3)


def test_the_readme_commands_run(server, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = at("\n".join(blocks("console")), server).replace(f"--push {server.push_url}", "--once")
    webhook = "--webhook 127.0.0.1:8080 --webhook-verify github \\\n    --webhook-secret-env SECRET"
    assert webhook in lines
    lines = lines.replace(webhook, "--once").splitlines()
    tail, again, status, *others = [shlex.split(line)[1:] for line in lines if line.startswith("push-to-poll ")]
    assert main(tail) == 0
    assert len(capfd.readouterr().out.splitlines()) == 3
    assert main(again) == 0
    assert len(capfd.readouterr().out.splitlines()) == 3  # it has no state
    assert main(status) == 0
    assert "records   3" in capfd.readouterr().out
    assert [main(other) for other in others] == [0, 0]
    assert capfd.readouterr().out.startswith("no dead letters\nsaved (UTC)          cursor\n")


def test_the_options_table_names_every_option_of_a_consumer():
    options = set(inspect.signature(Consumer).parameters) - {"feed"}
    table = README[README.index("## Options") : README.index("## Test your consumer")]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"\w+", row)}
    assert named == options


def test_the_options_table_has_the_defaults_of_a_consumer():
    defaults = {name: option.default for name, option in inspect.signature(Consumer).parameters.items()}
    table = README[README.index("## Options") : README.index("## Test your consumer")]
    numbers = {}
    for names, cell in re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.MULTILINE):
        found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", cell)
        numbers.update(zip(re.findall(r"\w+", names), map(float, found), strict=False))
    numbers = {name: number for name, number in numbers.items() if isinstance(defaults[name], int | float)}
    assert numbers == {name: defaults[name] for name in numbers}
    assert numbers["shutdown_timeout"] == 10


def test_the_readme_states_every_guarantee():
    assert re.findall(r"^\| (G\d+) \|", README, re.MULTILINE) == [f"G{n}" for n in range(1, 14)]
