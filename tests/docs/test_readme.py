"""README's programs run as they are, with the addresses of test servers, and its tables match the code."""

import dataclasses
import inspect
import itertools
import re
import shlex
import threading
import time
from pathlib import Path

import anyio
import httpx
import pytest
import respx
import uvicorn

from push_to_poll_client import Consumer
from push_to_poll_client.cli import main
from push_to_poll_client.testing import serve_in_thread
from tests.support.forms import GUARD
from tests.support.signing import hex_mac
from tests.vendors.stripe import Stripe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
WEBHOOK_SECRET = "whsec_canary"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def server():
    with serve_in_thread(backlog=3) as server:
        yield server


def at(text, server):
    """Return the text with the addresses of the reference server."""
    text = text.replace("wss://shop.example/orders/push", server.push_url)
    return text.replace("https://shop.example/orders", server.url)


# The first example


class StripeWebhooks:
    """In place of uvicorn: once three events are processed, one more is published and its webhook is sent."""

    def __init__(self, vendor):
        self.vendor = vendor
        self.backlog_processed, self.status = threading.Event(), None
        self.answered = threading.Event()

    def run(self, app):
        assert self.backlog_processed.wait(GUARD)
        self.vendor.publish()
        anyio.run(self._send, app)
        self.answered.set()

    async def _send(self, app):
        at, body = str(int(time.time())).encode(), b'{"object": "event"}'
        signature = hex_mac(WEBHOOK_SECRET.encode(), at + b"." + body)
        headers = {"Stripe-Signature": f"t={at.decode()},v1={signature}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            self.status = (await client.post("/", content=body, headers=headers)).status_code


def test_the_first_example_prints_the_backlog_and_is_woken_by_a_webhook(monkeypatch, capsys, tmp_path):
    (block,) = blocks("python")
    assert len([line for line in block.splitlines() if line]) <= 15
    stripe = Stripe(3)
    stripe.origin = "https://api.stripe.com"
    webhooks = StripeWebhooks(stripe)
    block = block.replace("sk_test_…", stripe.authorization.removeprefix("Bearer "))
    block = block.replace("whsec_…", WEBHOOK_SECRET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(uvicorn, "run", webhooks.run)
    monkeypatch.setattr(Consumer, "run", watched(Consumer.run, webhooks))
    with respx.mock() as router:
        router.route(host="api.stripe.com").mock(side_effect=stripe.handle)
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})  # noqa: S102  # it is ours
    assert webhooks.answered.wait(GUARD)
    assert webhooks.status == 200
    printed, shown = capsys.readouterr().out.splitlines(), blocks("text")[0].splitlines()
    assert [line.split()[0] for line in printed] == [event["id"] for event in stripe.entries]
    for line in [*printed, *shown]:
        assert re.fullmatch(r"evt_\w+ [a-z_.]+", line)
    assert (tmp_path / "stripe.db").exists()


def watched(run, webhooks):
    """Return `Consumer.run` that tells when three messages are processed, and stops after four."""

    async def run_and_stop(self):
        process, numbers = self._open_session.options.handler, itertools.count(1)

        async def counted(message):
            await process(message)
            number = next(numbers)
            if number == 3:
                webhooks.backlog_processed.set()
            elif number == 4:
                self.stop()

        self._open_session.options = dataclasses.replace(self._open_session.options, handler=counted)
        with anyio.fail_after(GUARD):
            await run(self)

    return run_and_stop


def test_the_badges_say_what_the_project_says():
    shown = re.findall(r"\[!\[(.*?)\]\(.*?\)\]\(.*?\)", README)
    versions = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert len(shown) <= 3
    assert f"Python {', '.join(versions)}" in shown
    assert README.index("[![") > README.index("\n\n", README.index("\n\n") + 1)  # below the first paragraph


# The command line, and the tables


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


OPTIONS = README[README.index("## Options") :].split("\n## ")[0]


def test_the_options_table_names_every_option_of_a_consumer():
    options = set(inspect.signature(Consumer).parameters) - {"feed"}
    rows = re.findall(r"^\| (`.*?) \|", OPTIONS, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"\w+", row)} == options


def test_the_options_table_has_the_defaults_of_a_consumer():
    defaults = {name: option.default for name, option in inspect.signature(Consumer).parameters.items()}
    numbers = {}
    for names, cell in re.findall(r"^\| (`.*?) \| (.*?) \|", OPTIONS, re.MULTILINE):
        found = re.findall(r"(?<![\w.])\d+(?:\.\d+)?", cell)
        numbers.update(zip(re.findall(r"\w+", names), map(float, found), strict=False))
    numbers = {name: number for name, number in numbers.items() if isinstance(defaults[name], int | float)}
    assert numbers == {name: defaults[name] for name in numbers}
    assert numbers["shutdown_timeout"] == 10


def test_the_table_of_calls_names_methods_of_a_consumer():
    table = README[README.index("## Use a consumer") :].split("\n## ")[0]
    names = re.findall(r"`(?:await )?consumer\.(\w+)", table)
    assert len(names) >= 8
    assert all(hasattr(Consumer, name) for name in names)


def test_the_readme_states_every_guarantee():
    assert re.findall(r"^\| \[(G\d+)\] \|", README, re.MULTILINE) == [f"G{n}" for n in range(1, 14)]
