"""The demo counts soberly: what it calls lost or repeated is, and a kill excuses no more than G7 says.

And it runs, in a short form, with nothing left behind however it ends.
"""

import contextlib
import logging
import os
import runpy
import select
import signal
import sys
import threading
import time
from pathlib import Path

import anyio
import httpx
import pytest

from push_to_poll_client.cli import demo as demo_module
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.cli.demo import _conductor, _consumer, _processes
from push_to_poll_client.cli.demo import _figures as figures
from push_to_poll_client.testing import serve_in_thread
from tests.support import command_line
from tests.support.command_line import typed
from tests.support.forms import GUARD, form

SHORT = ("demo", "--backlog", "30", "--live", "20")

KILLED, NEXT = 1, 2


def line(id, entered, pid=KILLED, published=0.0):
    return figures.HandlerCall(id, published, entered, pid)


def beyond(*lines):
    return figures.beyond_g7(lines, killed=KILLED, commit_interval=0.05)


def test_handler_file_reads_only_complete_lines(tmp_path):
    handled = figures.HandlerFile(tmp_path / "handled")
    handled.read()
    assert handled.lines == []
    for piece in ("a 1.0 2.5 7\nb 1.", "5 2.0 7\n", "c 3"):
        with handled.path.open("a") as file:
            file.write(piece)
        handled.read()
    assert handled.lines == [line("a", 2.5, 7, 1.0), line("b", 2.0, 7, 1.5)]
    assert handled.ids == {"a", "b"}
    assert handled.lines[0].latency == 1.5


def test_a_message_that_was_processed_once_is_not_counted_as_repeated():
    assert figures.processed_twice([line("a", 1), line("b", 2)]) == set()
    assert beyond(line("a", 1), line("b", 2)) == set()


def test_messages_of_the_last_commit_interval_before_a_kill_may_be_repeated():
    lines = [line("a", 1.0), line("b", 1.04), line("a", 2, NEXT), line("b", 2, NEXT)]
    assert figures.processed_twice(lines) == {"a", "b"}
    assert beyond(*lines) == set()


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line("a", 1.0), line("b", 1.06), line("a", 2, NEXT)], id="older than the flush interval"),
        pytest.param([line("a", 1.0), line("a", 1.01)], id="twice by one process"),
        pytest.param([line("a", 1.0, NEXT), line("a", 1.01, NEXT)], id="by one that was not killed"),
        pytest.param([line("a", 1.0), line("a", 2, NEXT), line("a", 2, NEXT)], id="a third time"),
    ],
)
def test_any_other_repeated_message_is_reported_as_beyond_g7(lines):
    assert beyond(*lines) == {"a"}


def test_the_latency_of_each_message_is_assigned_to_its_push_fallback_or_fault():
    lines = [
        line("own", 1.5, published=1.0),
        line("later", 3.0, published=2.0),
        line("timer", 5.0, published=4.0),
        line("broken", 7.0, published=6.0),
        line("again", 8.25, published=8.0),
        line("again", 9.0, published=8.0),
    ]
    pushes = [
        figures.ObservedPush("own", 1.0, 1),
        figures.ObservedPush("later", 2.0, 0),
        figures.ObservedPush("other", 2.9, 1),
        figures.ObservedPush("timer", 4.5, 0),
        figures.ObservedPush("broken", 6.0, 1),
        figures.ObservedPush("again", 8.0, 1),
    ]
    found = figures.latencies(lines, pushes, [figures.FaultPeriod(6.5, 6.6)])
    assert found == figures.Latencies(push=[0.25, 0.5], later_push=[1.0], fallback=[1.0], fault=[1.0])


@pytest.mark.parametrize(
    ("count", "p50", "p99"), [(1, 1, 1), (2, 1, 2), (100, 50, 99), (200, 100, 198), (3, 2, 3)]
)
def test_percentiles_are_measured_values(count, p50, p99):
    values = list(range(1, count + 1))
    assert (figures.percentile(values, 50), figures.percentile(values, 99)) == (p50, p99)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Where the demo keeps its files; a list of them."""
    monkeypatch.setattr(demo_module.tempfile, "tempdir", str(tmp_path))
    return lambda: list(tmp_path.iterdir())


@pytest.fixture
def _served_here(monkeypatch):
    """Serve in a thread what a process of its own serves else: its start costs more than the test."""

    class Server(_processes.ServerProcess):
        def __init__(self, backlog):
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(serve_in_thread(backlog=backlog))
                self.addresses = {"url": server.url, "push_url": server.push_url}
                self.http = stack.enter_context(httpx.Client(base_url=server.base_url, trust_env=False))
                self.close = stack.pop_all().close

    monkeypatch.setattr(_conductor, "ServerProcess", Server)


@pytest.mark.slow
def test_the_demo_runs_and_loses_no_message(capsys, files):
    assert typed(*SHORT) == Exit.DONE
    said = capsys.readouterr().out
    figures = dict(
        line.rsplit(maxsplit=1) for line in (line[:27] for line in said.splitlines()) if line[26:].isdigit()
    )
    assert {name: figures[name] for name in ("published", "processed", "lost")} == {
        "published": "50",
        "processed": "50",
        "lost": "0",
    }
    for trouble in ("the connection is cut", "a 503 is answered", "the consumer is killed"):
        assert f"live: {trouble}\n" in said
    assert files() == []


@pytest.mark.slow
@pytest.mark.usefixtures("_served_here")
@pytest.mark.parametrize(
    "program",
    [
        pytest.param("raise SystemExit('what went wrong')", id="it ends at once"),
        pytest.param(
            "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); "
            "print('what went wrong', flush=True); signal.pause()",
            id="it ends well",
        ),
    ],
)
def test_the_demo_fails_and_keeps_the_log_if_the_consumer_does_nothing(capsys, files, monkeypatch, program):
    """Everything is lost, its log is kept, and the exit code says so."""
    monkeypatch.setattr(_conductor, "STEP_TIMEOUT", 0.1)
    start = _processes.ConsumerProcess.start

    def start_nothing(self):
        self._command = [sys.executable, "-c", program]
        start(self)

    monkeypatch.setattr(_processes.ConsumerProcess, "start", start_nothing)
    assert typed(*SHORT) == Exit.BUG
    (directory,) = files()
    said = capsys.readouterr().out
    assert f"{'lost':<20}{50:>7}\n" in said
    assert f"FAILED; what the consumer logged and the handler wrote is in {directory}\n" in said
    assert "what went wrong" in (directory / "consumer.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backlog", "-1"], "--backlog must be at least 0 and --live at least 10"),
        (["--live", "9"], "--backlog must be at least 0 and --live at least 10"),
        (["--live", "many"], "argument --live: invalid int value;"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(capsys, arguments, says):
    assert typed("demo", *arguments) == Exit.USAGE
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_the_demo_names_the_extra_to_install_if_the_server_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(demo_module, "find_spec", lambda _: None)
    assert typed("demo") == Exit.USAGE
    assert capsys.readouterr().err == (
        "push-to-poll: the demo needs a server: pip install 'push-to-poll-client[serve]'\n"
    )


@pytest.mark.usefixtures("_served_here")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)]
)
def test_a_signal_ends_the_demo_and_removes_its_files(files, monkeypatch, number, code):
    before = signal.getsignal(signal.SIGTERM)
    # Another thread may get the signal, and this one hears of it a moment later.
    monkeypatch.setattr(demo_module.Demo, "run", lambda _: (os.kill(os.getpid(), number), time.sleep(GUARD)))
    assert typed(*SHORT) == code
    assert files() == []
    assert signal.getsignal(signal.SIGTERM) == before


def children(pid):
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="its children are looked up there")
@pytest.mark.parametrize("number", form([signal.SIGKILL], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
def test_no_child_process_is_left_after_the_demo_ends(tmp_path, number):
    """Not even when it has no time to end them."""
    with command_line.start(*SHORT, env={**os.environ, "TMPDIR": str(tmp_path)}) as demo:
        while not demo.stdout.readline().startswith("live: the connection"):
            assert demo.poll() is None
        descriptors = [os.pidfd_open(child) for child in children(demo.pid)]
        assert len(descriptors) == 2
        demo.send_signal(number)
        demo.communicate(timeout=GUARD)
    assert demo.returncode == (-number if number == signal.SIGKILL else 128 + number)
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], GUARD)[0]
        os.close(descriptor)


@pytest.mark.anyio
async def test_the_consumer_of_the_demo_records_every_message_once(tmp_path):
    handled = figures.HandlerFile(tmp_path / "handled")
    with serve_in_thread(backlog=3) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                _consumer.consume, server.url, server.push_url, str(tmp_path / "db"), str(handled.path)
            )
            await anyio.to_thread.run_sync(server.stats.wait_for, lambda stats: stats.websockets_open)
            server.publish(1)
            # The next empty answer may be one from before; what asks after that one has all behind it.
            enough = server.stats.empty + 2
            await anyio.to_thread.run_sync(server.stats.wait_for, lambda stats: stats.empty >= enough)
            os.kill(os.getpid(), signal.SIGTERM)
    handled.read()
    assert len(handled.ids) == len(handled.lines) == 4
    assert all(line.latency >= 0 and line.pid == os.getpid() for line in handled.lines)


def test_the_consumer_of_the_demo_ends_when_its_input_is_closed(monkeypatch):
    ended, (reading, writing) = threading.Event(), os.pipe()
    monkeypatch.setattr(os, "kill", lambda *_: ended.set())
    _consumer.end_with_parent(reading)
    os.close(writing)
    assert ended.wait(GUARD)
    os.close(reading)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_consumer_of_the_demo_is_started_with_its_command_line_arguments(monkeypatch):
    ran, watched = [], []
    monkeypatch.setattr(sys, "argv", ["_consumer", "a", "b", "c", "d"])
    monkeypatch.setattr(threading.Thread, "start", lambda thread: watched.append(thread))  # noqa: PLW0108
    monkeypatch.setattr(anyio, "run", lambda function, *places: ran.append((function.__name__, places)))
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    runpy.run_module(_consumer.__name__, run_name="__main__")
    assert ran == [("consume", ("a", "b", "c", "d"))]
    assert len(watched) == 1


def test_a_503_fault_ends_when_a_later_fetch_succeeds(tmp_path):
    """Not when one under way did."""
    answers = [{"200": 5}, {"200": 6, "503": 1}, {"200": 6, "503": 1}, {"200": 7, "503": 1}]

    class Server:
        """Answers what it is told to."""

        def set_faults(self, **faults):
            assert faults == {"fail_next": 1, "fail_status": 503}

        def stats(self):
            return {"statuses": answers.pop(0)}

    demo = _conductor.Demo(tmp_path, backlog=0, live=10)
    demo._server = Server()
    demo._answer_503()
    while answers:
        assert demo._faults == []
        demo._observe()
    assert len(demo._faults) == 1


def test_progress_overwrites_one_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    screen = _conductor.Screen()
    screen.show("1")
    screen.show("2")
    screen.say("stays")
    assert capsys.readouterr().out == "\r\x1b[K1\r\x1b[K2\r\x1b[Kstays\n"


def test_progress_is_printed_rarely_if_stdout_is_not_a_terminal(capsys):
    screen = _conductor.Screen()
    screen.show("1")
    screen.show("2")
    screen.say("stays")
    assert capsys.readouterr().out == "1\nstays\n"
