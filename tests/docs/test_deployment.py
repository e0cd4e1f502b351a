"""The programs, units and commands of docs/deployment.md and docs/command-line.md run or are checked."""

import ast
import configparser
import dataclasses
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from push_to_poll_client import Consumer, MemoryStore, ProcessError, SQLiteStore, StopConsumer
from push_to_poll_client.cli import main
from push_to_poll_client.stores._sqlite.owner_lock import OwnerLock
from push_to_poll_client.stores.postgres import PostgresStore
from push_to_poll_client.testing import FakeFeed, serve_in_thread
from tests.support.forms import GUARD
from tests.support.postgres_server import shared_server

DOCS = Path(__file__).parents[2] / "docs"
DEPLOYMENT, COMMAND_LINE = ((DOCS / f"{name}.md").read_text() for name in ("deployment", "command-line"))


def blocks(language, text=DEPLOYMENT):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def block_with(text):
    """The one block of Python that contains the text."""
    (block,) = (block for block in blocks("python") if text in block)
    return block


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


@pytest.fixture
def server():
    with serve_in_thread(backlog=3) as server:
        yield server


def at(text, server):
    return text.replace("https://shop.example/orders", server.url)


IDS = [f"{n:012d}" for n in (1, 2, 3)]


# Programs


@pytest.mark.slow
def test_the_documented_service_stops_cleanly_on_sigterm(server, tmp_path):
    program = at(block_with("def main():\n    logging"), server)
    started = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with started:
        try:
            assert started.stdout.readline()
            started.terminate()
            _, log = started.communicate(timeout=GUARD)
        finally:
            started.kill()
    assert started.returncode == 0
    assert "INFO orders: stopped at" in log
    assert not (tmp_path / "orders.db-wal").exists()


@pytest.mark.slow
def test_the_documented_script_reads_to_the_end_of_the_feed(server, tmp_path):
    program = at(block_with("orders.catch_up)"), server)
    for lines in (3, 0):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        *ids, summary = done.stdout.splitlines()
        assert (len(ids), summary) == (lines, f"{lines} new messages: 0 are dead letters, 0 were skipped")


def test_the_documented_cell_of_a_notebook_reads_all_messages(server):
    cell, space = at(block_with("await orders.catch_up()"), server), {}

    async def run():
        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await types.FunctionType(code, space)()

    anyio.run(run)
    assert [message.id for message in space["seen"]] == IDS


def test_the_documented_django_command_consumes_in_a_thread(server, capsys, monkeypatch, tmp_path):
    pytest.importorskip("django")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Consumer, "run", stops_after(Consumer.run, 3))
    space = {"__name__": "consume_orders"}
    exec(compile(at(block_with("BaseCommand"), server), "deployment.md", "exec"), space)  # noqa: S102  # it is ours
    before = signal.getsignal(signal.SIGTERM)
    try:
        space["Command"]().handle()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().out.splitlines() == [f"order {number}" for number in IDS]


def test_the_documented_program_runs_many_consumers_on_one_store(server, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen, together = [], 2

    class Orders(Consumer):
        async def process(self, message):
            seen.append((self.name, message.id))
            if len(seen) == together * 3:
                raise StopConsumer

    space = {"Orders": Orders}
    exec(compile(block_with("max_keepalive_connections"), "deployment.md", "exec"), space)  # noqa: S102  # it is ours
    names = [f"{server.url}?n={n}" for n in range(together)]
    with pytest.raises(ExceptionGroup) as ended:
        anyio.run(space["consume_all"], names)
    assert [type(error) for error in ended.value.exceptions] == [ProcessError]
    assert sorted(seen) == [(name, number) for name in names for number in IDS]


# Web applications


def lifespan_block(orders):
    """Return the names of the block about web applications."""
    pytest.importorskip("fastapi")
    space = {"orders": orders}
    exec(compile(block_with("tasks.cancel_scope.cancel()"), "deployment.md", "exec"), space)  # noqa: S102  # it is ours
    return space


class Orders(Consumer):
    """Knows when it has caught up with three messages."""

    def __init__(self, feed, store):
        super().__init__(feed, store=store, name="orders")
        self.seen, self.done = [], anyio.Event()

    async def process(self, message):
        self.seen.append(message.id)
        if len(self.seen) == 3:
            self.done.set()


@pytest.fixture
def feed():
    feed = FakeFeed()
    feed.publish(3)
    return feed


@pytest.mark.anyio
async def test_the_documented_lifespan_runs_the_consumer_and_stops_it(feed):
    orders = Orders(feed, MemoryStore())
    space = lifespan_block(orders)
    async with space["lifespan"](space["app"]):
        await orders.done.wait()
        assert orders.status().is_owner
    assert not orders.status().is_owner


@pytest.mark.anyio
async def test_another_worker_takes_over_within_two_seconds(feed):
    store = MemoryStore()
    first, second = Orders(feed, store), Orders(feed, store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.run)
        await first.done.wait()
        tasks.start_soon(second.run)
        await anyio.wait_all_tasks_blocked()
        assert [one.status().is_owner for one in (first, second)] == [True, False]
        first.stop()
        feed.publish(3)
        with anyio.fail_after(2):
            await second.done.wait()
        assert second.status().is_owner
        tasks.cancel_scope.cancel()
    assert (len(first.seen), len(second.seen)) == (3, 3)


# systemd


UNIT = blocks("ini")[0]


def unit():
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read_string(UNIT.replace("\\\n", " "))
    return parser


def local_command(command, server, folder):
    """Split a documented command, with the test's feed, files and interpreter."""
    (folder / "handle.py").write_text("import sys; sys.stdout.write(sys.stdin.read())")
    for there, here in (
        (r"[^\s\"]*venv/bin/python", sys.executable),
        (r"[^\s\"]*orders\.db", str(folder / "orders.db")),
        (r"[^\s\"]*handle\.py", str(folder / "handle.py")),
    ):
        command = re.sub(there, lambda _, here=here: here, command)
    words = shlex.split(at(command, server))
    assert words[0].endswith("venv/bin/push-to-poll")
    return words[1:]


def test_the_documented_unit_runs_its_command_for_each_message(server, capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("SHOP_TOKEN", "token")
    command = local_command(unit()["Service"]["ExecStart"], server, tmp_path)
    assert main([*command, "--once"]) == 0
    assert [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()] == IDS


def test_the_documented_unit_stops_and_restarts_as_the_page_says():
    service = unit()["Service"]
    assert (
        int(service["TimeoutStopSec"]) >= inspect.signature(Consumer).parameters["shutdown_timeout"].default + 10
    )
    assert (service["SuccessExitStatus"], service["RestartPreventExitStatus"]) == ("143", "2")
    explained = re.findall(r"^\| `(\w+=)", DEPLOYMENT, re.MULTILINE)
    assert explained
    assert {name.rstrip("=") for name in explained} <= set(service)


ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed")
def test_systemd_accepts_the_documented_unit(tmp_path):
    path = tmp_path / "orders.service"
    path.write_text(UNIT.replace("/srv/orders/venv/bin/push-to-poll", sys.executable))
    done = subprocess.run([ANALYZE, "verify", path], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "orders.service" in line] == []
    assert done.returncode == 0, done.stderr


# Containers


def test_the_documented_image_runs_the_program_as_another_user_than_root():
    lines = dict(line.split(" ", 1) for line in blocks("dockerfile")[0].splitlines())
    assert json.loads(lines["CMD"])[0] == "python"
    assert int(lines["USER"]) > 0
    assert lines["USER"] in lines["RUN"]
    assert lines["WORKDIR"] == lines["VOLUME"]


def test_the_documented_manifests_run_one_replica_that_has_thirty_seconds_to_stop():
    compose, kubernetes = blocks("yaml")
    assert "stop_grace_period: 30s" in compose
    assert "terminationGracePeriodSeconds: 30\n" in kubernetes
    assert "replicas: 1\n" in kubernetes
    (image_directory,) = re.findall(r"^VOLUME (.*)", blocks("dockerfile")[0], re.MULTILINE)
    assert image_directory in compose
    assert image_directory in kubernetes


def test_the_documented_manifests_are_yaml():
    yaml = pytest.importorskip("yaml")
    compose, kubernetes = map(yaml.safe_load, blocks("yaml"))
    (volume,) = compose["services"]["orders"]["volumes"]
    assert volume.split(":")[0] in compose["volumes"]
    spec = kubernetes["spec"]
    (mount,) = spec["template"]["spec"]["containers"][0]["volumeMounts"]
    assert mount["name"] == spec["volumeClaimTemplates"][0]["metadata"]["name"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


# Cron


def cron_command(server, folder):
    script = block_in("sh", "poll").replace("\\\n", " ")
    (command,) = re.findall(r"^exec (.*)", script, re.MULTILINE)
    return local_command(command, server, folder)


def block_in(language, text):
    (block,) = (block for block in blocks(language) if text in block)
    return block


def test_the_documented_cron_job_continues_where_the_last_run_ended(server, capfd, tmp_path):
    command = cron_command(server, tmp_path)
    for ids in (IDS, []):
        assert main(command) == 0
        assert [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()] == ids


def test_a_cron_job_ends_with_5_and_changes_nothing_while_the_last_run_works(server, capfd, tmp_path):
    command, last_run = cron_command(server, tmp_path), OwnerLock(str(tmp_path / "orders.db"))
    assert main(command) == 5
    out, err = capfd.readouterr()
    assert out == ""
    assert "is in use by" in err
    last_run.release()
    assert main(command) == 0
    assert len(capfd.readouterr().out.splitlines()) == 3


# The command


def indented(text):
    """Yield each indented command line, without the line breaks in it."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^ {4}(push-to-poll .*)", joined, re.MULTILINE)]


def test_the_commands_of_the_command_line_page_run(server, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    follow, hooks, each, status, *_ = ([at(word, server) for word in words] for words in indented(COMMAND_LINE))
    push = follow.index("--push")
    assert main([*follow[:push], *follow[push + 2 :], "--once"]) == 0
    assert [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()] == IDS
    monkeypatch.setenv("SECRET", "secret")
    assert main([*hooks, "--once"]) == 2
    assert "--once does not wait for pushes" in capfd.readouterr().err  # the other options are right
    (tmp_path / "handle.py").write_text("print(input())")
    server.publish(1)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert main([*each, "--once"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1
    assert main(status) == 0
    assert "records   4" in capfd.readouterr().out


def test_the_commands_for_postgresql_of_the_command_line_page_run(pytestconfig, capsys):
    server = shared_server(pytestconfig)
    *_, owners, release, migrate = indented(COMMAND_LINE)
    for command in (owners, release, migrate):
        command[-1] = re.sub("postgresql://.*", server.conninfo, command[-1])
    server.execute("DROP SCHEMA IF EXISTS push_to_poll CASCADE")
    assert main(migrate) == 0
    with start_blocking_portal() as portal:
        store = PostgresStore(server.conninfo, instance="web-2:311")
        session = portal.call(partial(store.claim, "orders", feed="feed"))
        assert main(release) == 0
        assert main(owners) == 0
        portal.call(session.release)
        portal.call(store.aclose)
    server.execute("DROP SCHEMA push_to_poll CASCADE")
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*: created the tables, version \d+", lines[0])
    assert lines[1] == "web-2:311 is asked to hand over 'orders'; push-to-poll owners shows the result"
    (table,) = blocks("console", COMMAND_LINE.split("## Owners")[1])
    assert lines[2] == table.splitlines()[0]
    assert re.fullmatch(r"'orders' +1 +[0-9.]+ s  asked      web-2:311", lines[3])


@pytest.mark.anyio
async def test_the_program_of_the_command_line_page_shows_the_owners(tmp_path):
    namespace = {}
    (program,) = blocks("python", COMMAND_LINE)
    exec(program, namespace)  # noqa: S102
    store = SQLiteStore(tmp_path / "orders.db")
    session = await store.claim("orders", feed="feed")
    assert await namespace["owners"](store) == {"orders": f"process {os.getpid()}"}
    await session.release()
    assert await namespace["owners"](store) == {"orders": None}


def test_the_table_of_commands_names_each_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z-]+)(?: {2}|$)", capsys.readouterr().out, re.MULTILINE)
    named = re.findall(r"^\| \[?`([a-z-]+)`", COMMAND_LINE.split("## The store")[0], re.MULTILINE)
    assert sorted(named) == sorted(commands)
