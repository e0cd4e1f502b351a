"""Every program of `docs/handlers.md` runs and does what the page says."""

import inspect
import re
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import msgspec
import pytest

from push_to_poll_client import Consumer, HandlerDecision, Hooks, MemoryStore, ProcessError
from push_to_poll_client.testing import FakeFeed, serve_in_thread

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "docs" / "handlers.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def block_with(text):
    """Return the one block that contains the text."""
    (block,) = (block for block in BLOCKS if text in block)
    return block


def names_of(text, **given):
    """Run the block that contains the text, in a program with the given names; return all names."""
    names = {"Consumer": Consumer, "store": MemoryStore(), "feed": FakeFeed(page_size=10), **given}
    exec(compile(block_with(text), "handlers.md", "exec"), names)  # noqa: S102  # it is ours
    return names


class Failing:
    """A handler that records the ids that it gets, and fails for some of them."""

    def __init__(self, *failing, error=ValueError):
        self.failing, self.error = failing, error
        self.seen = []

    async def __call__(self, message):
        self.seen.append(message.id)
        if message.id in self.failing:
            raise self.error(message.id)


async def test_the_first_handler_gets_each_message_once():
    shipped = []

    async def ship(data):
        shipped.append(data)

    names = names_of("ship(message.data)", ship=ship)
    names["feed"].publish("1", "2", data={"cents": 5})
    for _ in range(2):
        await names["orders"].catch_up()
    assert shipped == [{"cents": 5}] * 2


async def test_the_documented_retry_waits_and_gives_up_a_value_error_at_once():
    process = Failing("1", error=KeyError)
    names = names_of("stop_after_attempt(8)", process=process)
    names["feed"].publish("1")
    began = anyio.current_time()
    with pytest.raises(ProcessError):
        await names["orders"].catch_up()
    assert len(process.seen) == 8
    assert anyio.current_time() - began >= 1 + 2 + 4 + 8 + 16 + 32 + 64
    process.error = ValueError
    with pytest.raises(ProcessError):
        await names["orders"].catch_up()
    assert len(process.seen) == 8 + 1


async def test_the_handler_that_decides_by_itself_does_so_for_each_status():
    statuses = {"busy": [429, 201], "invalid": [422], "paid": [409], "broken": [500, 201], "last": [401]}
    keys = []

    def answer(request):
        keys.append(request.headers["Idempotency-Key"])
        return httpx.Response(statuses[msgspec.json.decode(request.content)].pop(0), headers={"Retry-After": "60"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="https://bank.example") as bank:
        names = names_of("raise RetryMessage(", bank=bank)
        for name in statuses:
            names["feed"].publish(name, data=name)
        orders = Consumer(names["feed"], store=names["store"], name="orders", process=names["process"])
        began = anyio.current_time()
        with pytest.raises(ProcessError, match="'last'"):
            await orders.catch_up()
    assert anyio.current_time() - began >= 60
    assert keys == ["busy", "busy", "invalid", "paid", "broken", "broken", "last"]
    assert [letter.id for letter in await orders.dead_letters.list()] == ["invalid"]
    assert orders.status().counters.skipped == 1


def test_every_exception_by_which_a_handler_decides_is_listed():
    rows = re.findall(r"^\| `(\w+)\(reason", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(kind.__name__ for kind in HandlerDecision.__subclasses__())


def test_every_hook_is_listed_with_its_arguments():
    rows = re.findall(r"^\| `(\w+)\((.*)\)` \| ", PAGE.split("| hook |")[1], re.MULTILINE)
    hooks = {
        name: list(inspect.signature(hook).parameters)[1:] for name, hook in vars(Hooks).items() if name[0] != "_"
    }
    assert {name: arguments.split(", ") for name, arguments in rows} == hooks


async def test_the_documented_policy_stops_for_a_connection_and_keeps_the_rest():
    process = Failing("1", "2")
    names = names_of("def on_failure(", process=process)
    names["feed"].publish("1", "2", "3")
    await names["orders"].catch_up()
    assert names["orders"].status().dead_letters == 2
    process.failing, process.error = ("4",), ConnectionError
    names["feed"].publish("4")
    with pytest.raises(ProcessError):
        await names["orders"].catch_up()


async def test_the_documented_loop_prints_dead_letters_and_a_retry_empties_the_list(capsys):
    process = Failing("1")
    names = names_of("def on_failure(", process=process)
    orders = names["orders"]
    names["feed"].publish("1", data={"cents": 5})
    await orders.catch_up()
    loop = "async def show(orders):\n" + "".join(
        f"    {line}\n" for line in block_with("in orders.dead_letters").splitlines()
    )
    exec(loop, names)  # noqa: S102  # it is ours
    await names["show"](orders)
    assert capsys.readouterr().out == "1 5 ValueError: 1\n"
    process.failing = ()
    assert (await orders.dead_letters.retry()).processed == 1
    await names["show"](orders)
    assert capsys.readouterr().out == ""


async def test_the_documented_batches_are_as_large_as_the_page_says():
    batches = []

    class Warehouse:
        async def insert(self, rows):
            batches.append(len(rows))

    feed = FakeFeed(page_size=10, read_ahead=True)
    feed.publish(600)
    names = names_of("warehouse.insert", warehouse=Warehouse(), feed=feed)
    await names["orders"].catch_up()
    assert batches == [500, 100]


async def test_the_documented_concurrency_keeps_the_order_of_each_customer():
    running, most, seen = set(), [], []

    async def process(message):
        customer = message.data["customer"]
        assert customer not in running
        running.add(customer)
        most.append(len(running))
        await anyio.sleep(1)
        running.discard(customer)
        seen.append(message.id)

    names = names_of("concurrency=16", process=process, feed=FakeFeed(page_size=100))
    for number in range(12):
        names["feed"].publish(str(number), data={"customer": number % 4})
    await names["orders"].catch_up()
    assert max(most) == 4
    for customer in range(4):
        of_one = [number for number in map(int, seen) if number % 4 == customer]
        assert of_one == sorted(of_one)


async def test_the_documented_telemetry_counts_messages_and_failures():
    counts, process = Counter(), Failing("2")
    names = names_of("class Telemetry(", process=process, counts=counts)
    names["feed"].publish("1", "2")
    with pytest.raises(ProcessError):
        await names["orders"].catch_up()
    assert counts == {"messages processed": 1, "failures, then retry": 4, "failures, then stop": 1}


# On real servers and files


@pytest.fixture
def server():
    with serve_in_thread() as server:
        yield server


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_documented_transfer_moves_money_exactly_once(monkeypatch, tmp_path, server):
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("bank.db")) as connection, connection:
        connection.execute("CREATE TABLE account(name TEXT PRIMARY KEY, cents INTEGER CHECK(cents >= 0))")
        connection.executemany("INSERT INTO account VALUES (?, ?)", [("a", 100), ("b", 0)])
    server.publish([{"from": "a", "to": "b", "cents": cents} for cents in (30, 500, 20)])
    server.publish([{"from": "a", "to": "nobody", "cents": 1}])
    monkeypatch.setitem(Consumer.__init__.__kwdefaults__, "retry", None)  # which takes real time
    block = block_with("transfer(message)").replace("https://bank.example/transfers", server.url)
    names = {}
    exec(compile(block, "handlers.md", "exec"), names)  # noqa: S102  # it is ours
    await names["bank"].poll_now()
    letters = await names["bank"].dead_letters.list()
    with closing(sqlite3.connect("bank.db")) as connection:
        assert dict(connection.execute("SELECT name, cents FROM account")) == {"a": 50, "b": 50}
    assert [letter.error.split(":")[0] for letter in letters] == ["IntegrityError", "DeadLetterMessage"]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_documented_typed_handler_gets_decoded_data(server, capsys):
    block = block_with("TypedOrders").replace("https://shop.example/orders", server.url)
    names = {}
    exec(compile(block, "handlers.md", "exec"), names)  # noqa: S102  # it is ours
    server.publish([{"customer": "Ada", "cents": 995}, {"customer": "Ada", "cents": "a few"}])
    orders = names["TypedOrders"](names["feed"], store=MemoryStore(), name="orders", on_failure="dead_letter")
    await orders.catch_up()
    (letter,) = await orders.dead_letters.list()
    assert capsys.readouterr().out == "995\n"
    assert "Expected `int`, got `str` - at `$.cents`" in letter.error
