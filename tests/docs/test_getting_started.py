"""Getting started: each step runs as the page shows it, in processes of its own, and prints what the page says."""

import contextlib
import io
import json
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from push_to_poll_client.cli import main
from tests.support.forms import GUARD

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "getting-started.md").read_text()
STEPS = dict(re.findall(r"^## \d\. (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

AT_ONCE = (
    "from tenacity import AsyncRetrying, stop_after_attempt\n"
    "from push_to_poll_client import Consumer\n"
    "Consumer.__init__.__kwdefaults__['retry'] = AsyncRetrying(stop=stop_after_attempt(5))\n"
)
"""Waits for no time between two attempts, of which there are as many."""


def programs(step):
    return re.findall(r"^```python\n(.*?)^```$", STEPS[step], re.MULTILINE | re.DOTALL)


def commands(step):
    """Return the commands of a step, each with its output."""
    blocks = re.findall(r"^```console\n(.*?)^```$", STEPS[step], re.MULTILINE | re.DOTALL)
    return [
        (command.split("\n", 1)[0], command.split("\n", 1)[1].splitlines())
        for block in blocks
        for command in block.removeprefix("$ ").split("\n$ ")
    ]


class Running:
    """A command that runs until it is killed; its output is read line by line."""

    def __init__(self, *command, directory, heads=("",)):
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines, self._heads = queue.Queue(), heads
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line.startswith(self._heads):
                self._lines.put(line.rstrip("\n"))

    def lines(self, count):
        return [self._lines.get(timeout=GUARD) for _ in range(count)]

    def kill(self):
        self.process.kill()
        self.process.wait(GUARD)
        self._reader.join(GUARD)
        self.process.stdout.close()


class Reader:
    """A reader who follows the page in an empty directory."""

    def __init__(self, directory, stack):
        self.directory, self._stack = directory, stack
        self.server = self.service = ""

    def local(self, text):
        """The same text with the ports that are free here."""
        text = text.replace("127.0.0.1:8001", self.server)
        return text.replace("127.0.0.1:8000", self.service) if self.service else text

    def save(self, name, text):
        (self.directory / name).write_text(self.local(text))

    def start(self, *command, heads=("0000",)):
        running = Running(*command, directory=self.directory, heads=heads)
        self._stack.callback(running.kill)
        return running

    def curl(self, command, printed):
        """Send what `curl -d` sends, and compare the answer with the page's."""
        _, _, body, url = shlex.split(self.local(command))
        assert httpx.post(url, content=body).text == self.local(printed[0])

    def stats(self):
        return httpx.get(f"http://{self.server}/stats").json()

    def run(self, command):
        """Run the library's command in this process, and return what it prints."""
        shown = io.TextIOWrapper(io.BytesIO(), write_through=True)
        with contextlib.chdir(self.directory), contextlib.redirect_stdout(shown):
            assert main(shlex.split(command)[1:]) == 0
        return shown.buffer.getvalue().decode()

    def push_to_poll(self, command, printed):
        """Run the library's command, and compare what it prints, but for the time."""
        assert without_times(self.run(command).splitlines()) == without_times(printed)

    def status(self):
        return json.loads(self.run("push-to-poll status --store orders.db --json"))["consumers"][0]

    def wait_for_cursor(self, cursor):
        wait_until(lambda: self.status()["cursor"] == cursor)


def without_times(lines):
    return [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", line.rstrip()) for line in lines]


@pytest.fixture
def reader(tmp_path):
    with contextlib.ExitStack() as stack:
        yield Reader(tmp_path, stack)


def test_every_step_prints_what_the_page_says(reader):
    start_the_server(reader)
    consume_the_feed(reader)
    add_push(reader)
    add_a_webhook(reader)
    handle_a_message_that_fails(reader)


def start_the_server(reader):
    (serve, [addresses]), publish = commands("Start a server to practise with")
    server = reader.start(*shlex.split(serve)[1:-1], "0", heads=("{",))
    real = json.loads(server.lines(1)[0])
    reader.server = real["base_url"].removeprefix("http://")
    assert json.dumps(real).startswith(reader.local(addresses).removesuffix(", …}"))
    reader.curl(*publish)


def consume_the_feed(reader):
    reader.save("orders.py", programs("Consume the feed")[0])
    [(command, orders)] = commands("Consume the feed")
    assert command == "python orders.py"
    first = reader.start("orders.py")
    assert first.lines(2) == orders
    reader.wait_for_cursor("000000000002")  # unsaved messages come again
    first.kill()
    publish, (_, orders) = commands("Kill it and start it again")
    reader.curl(*publish)
    second = reader.start("orders.py")
    assert second.lines(1) == orders
    reader.wait_for_cursor("000000000003")
    second.kill()


def add_push(reader):
    unchanged = programs("Consume the feed")[0].split("\norders = ")[0]
    reader.save("orders.py", unchanged + "\n" + programs("Add push")[0])
    publish, (_, orders) = commands("Add push")
    pushed = reader.start("orders.py")
    wait_until(lambda: reader.stats()["websockets_open"])
    reader.curl(*publish)
    assert pushed.lines(1) == orders
    reader.wait_for_cursor("000000000004")
    pushed.kill()


def add_a_webhook(reader):
    reader.save("app.py", programs("Add a webhook")[0])
    # The command of the page, with a free port.
    assert "uvicorn app:app --port 8000" in STEPS["Add a webhook"]
    uvicorn = reader.start("-m", "uvicorn", "app:app", "--port", "0", heads=("0000", "INFO:     Uvicorn running"))
    (running,) = uvicorn.lines(1)
    reader.service = re.search(r"http://(\S+)", running)[1]
    for command, printed in commands("Add a webhook"):
        reader.curl(command, printed)
    (order,) = re.findall(r"^```text\n(.*)\n```$", STEPS["Add a webhook"], re.MULTILINE)
    assert uvicorn.lines(1) == [order]
    wait_until(lambda: reader.stats()["webhooks"] == {"200": 1})  # it was woken, and did not poll by chance
    reader.wait_for_cursor("000000000005")
    uvicorn.kill()


def handle_a_message_that_fails(reader):
    failing, fixed = programs("Handle a message that fails")
    reader.save("orders.py", AT_ONCE + failing)
    publish, run, listing, retry, run_again, listing_again = commands("Handle a message that fails")
    reader.curl(*publish)
    consumer = reader.start("orders.py")
    assert consumer.lines(1) == run[1]
    reader.wait_for_cursor("000000000007")
    reader.push_to_poll(*listing)
    consumer.kill()
    head, tail = failing.split("class Orders(Consumer):")[0], failing[failing.index("orders = Orders(") :]
    reader.save("orders.py", f"{head}{fixed}\n{tail}")
    reader.push_to_poll(*retry)
    consumer = reader.start("orders.py")
    assert consumer.lines(1) == run_again[1]
    wait_until(lambda: reader.status()["dead_letters"] == 0)
    reader.push_to_poll(*listing_again)
    consumer.kill()


def wait_until(happened):
    ends = time.monotonic() + GUARD
    while not happened():
        assert time.monotonic() < ends, "it did not happen in time"
