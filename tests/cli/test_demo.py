"""The demo reports lost and repeated messages correctly; a kill excuses only repeats that G7 allows.

A short form of the demo runs, and leaves nothing behind however it ends.
"""

import contextlib
import logging
import os
import runpy
import signal
import sys
import threading
import time

import anyio
import httpx
import psutil
import pytest

from push_to_poll_client.cli import _demo, _demo_consumer
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.testing import serve_in_thread
from tests.support import command_line
from tests.support.command_line import BACKENDS, typed
from tests.support.forms import GUARD, form
from tests.support.processes import wait_for_end

SHORT = ("demo", "--backlog", "30", "--live", "20")

KILLED, NEXT = 1, 2


def line(id, entered, pid=KILLED, published=0.0):
    return _demo.HandlerCall(id, published, entered, pid)


def test_only_whole_lines_of_the_handler_are_read(tmp_path):
    handled = tmp_path / "handled"
    assert _demo.read_calls(handled) == []
    handled.write_text('["a",1.0,2.5,7]\n["b",1.5,2.0,7]\n["c",3')
    assert _demo.read_calls(handled) == [line("a", 2.5, 7, 1.0), line("b", 2.0, 7, 1.5)]


def test_a_message_that_was_processed_once_is_not_counted_as_repeated():
    assert _demo.processed_twice([line("a", 1), line("b", 2)]) == (set(), set())
    assert _demo.processed_twice([]) == (set(), set())


def test_messages_of_the_last_commit_interval_before_a_kill_may_be_repeated():
    lines = [line("a", 1.0), line("b", 1.04), line("a", 2, NEXT), line("b", 2, NEXT)]
    assert _demo.processed_twice(lines) == ({"a", "b"}, set())


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([line("a", 1.0), line("b", 1.06), line("a", 2, NEXT)], id="older than the flush interval"),
        pytest.param([line("a", 1.0), line("a", 1.01)], id="twice by one process"),
        pytest.param([line("b", 0.9), line("a", 1.0, NEXT), line("a", 1.01, NEXT)], id="by the next one"),
        pytest.param([line("a", 1.0), line("a", 2, NEXT), line("a", 2, NEXT)], id="a third time"),
    ],
)
def test_any_other_repeated_message_is_reported_as_beyond_g7(lines):
    assert _demo.processed_twice(lines) == ({"a"}, {"a"})


def test_the_latency_of_each_message_is_assigned_to_its_push_fallback_or_fault():
    lines = [
        line("own", 1.5, published=1.0),
        line("later", 3.0, published=2.0),
        line("timer", 5.0, published=4.0),
        line("broken", 7.0, published=6.0),
        line("unsent", 7.5, published=6.75),
        line("mends", 7.75, published=6.75),
        line("again", 8.25, published=8.0),
        line("again", 9.0, published=8.0),
    ]
    sent = {"own": 1.0, "other": 2.9, "broken": 6.0, "mends": 6.75, "again": 8.0}
    assert _demo.latencies(lines, sent, [6.5]) == {
        "latency by push": [0.25, 0.5],
        "by a later push": [1.0],
        "latency by fallback": [1.0],
        "across a fault": [0.75, 1.0, 1.0],
    }


def test_a_fault_without_a_served_push_after_it_lasts_to_the_end():
    lines = [line("dropped", 2.0, published=1.5), line("later", 4.0, published=3.0)]
    assert _demo.latencies(lines, {}, [1.0])["across a fault"] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("count", "p50", "p99"), [(1, 1, 1), (2, 1, 2), (100, 50, 99), (200, 100, 198), (3, 2, 3)]
)
def test_percentiles_are_measured_values(count, p50, p99):
    values = list(range(1, count + 1))
    assert (_demo.percentile(values, 50), _demo.percentile(values, 99)) == (p50, p99)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return the directories of the demo's files."""
    monkeypatch.setattr(_demo.tempfile, "tempdir", str(tmp_path))
    return lambda: list(tmp_path.iterdir())


@pytest.fixture
def _served_here(monkeypatch):
    """Serve in a thread instead of a process: starting a process costs more than the test."""

    class Server(_demo.ServerProcess):
        def __init__(self, backlog):
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(serve_in_thread(backlog=backlog))
                self.addresses = {"url": server.url, "push_url": server.push_url}
                self.http = stack.enter_context(httpx.Client(base_url=server.base_url, trust_env=False))
                self.close = stack.pop_all().close

    monkeypatch.setattr(_demo, "ServerProcess", Server)


@pytest.mark.slow
def test_the_demo_runs_and_loses_no_message(capsys, files):
    assert typed(*SHORT) == Exit.DONE
    output = capsys.readouterr().out
    figures = dict(
        line.rsplit(maxsplit=1) for line in (line[:27] for line in output.splitlines()) if line[26:].isdigit()
    )
    assert {name: figures[name] for name in ("published", "processed", "lost")} == {
        "published": "50",
        "processed": "50",
        "lost": "0",
    }
    for trouble in ("the connection is cut", "a 503 is answered", "the consumer is killed"):
        assert f"live: {trouble}\n" in output
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
    """All messages are lost, the log is kept, and the exit code shows the failure."""
    monkeypatch.setattr(_demo, "STEP_TIMEOUT", 0.1)
    start = _demo.ConsumerProcess.start

    def start_nothing(self):
        self._command = [sys.executable, "-c", program]
        start(self)

    monkeypatch.setattr(_demo.ConsumerProcess, "start", start_nothing)
    assert typed(*SHORT) == Exit.BUG
    (directory,) = files()
    output = capsys.readouterr().out
    assert f"{'lost':<20}{50:>7}\n" in output
    assert f"FAILED: the consumer's log and the handler's file are in {directory}\n" in output
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
    monkeypatch.setattr(_demo, "find_spec", lambda _: None)
    assert typed("demo") == Exit.USAGE
    assert capsys.readouterr().err == (
        "push-to-poll: demo needs uvicorn, which is not installed: pip install 'push-to-poll-client[serve]'\n"
    )


@pytest.mark.usefixtures("_served_here")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)]
)
def test_a_signal_ends_the_demo_and_removes_its_files(files, monkeypatch, number, code):
    before = signal.getsignal(signal.SIGTERM)
    # Another thread may get the signal; the main thread handles it a moment later.
    monkeypatch.setattr(_demo, "_go_live", lambda *_: (os.kill(os.getpid(), number), time.sleep(GUARD)))
    assert typed(*SHORT) == code
    assert files() == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", form([signal.SIGKILL], [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]))
def test_no_child_process_is_left_after_the_demo_ends(tmp_path, number):
    """Even if the demo has no time to end them."""
    with command_line.start(*SHORT, env={**os.environ, "TMPDIR": str(tmp_path)}) as demo:
        while not demo.stdout.readline().startswith("live: the connection"):
            assert demo.poll() is None
        children = psutil.Process(demo.pid).children()
        assert len(children) == 2
        demo.send_signal(number)
        demo.communicate(timeout=GUARD)
    assert demo.returncode == (-number if number == signal.SIGKILL else 128 + number)
    wait_for_end(*children)


@pytest.mark.anyio
async def test_the_consumer_of_the_demo_records_every_message_once(tmp_path, monkeypatch):
    handlers, handled = {}, tmp_path / "handled"
    monkeypatch.setattr(_demo_consumer.signal, "signal", handlers.__setitem__)
    with serve_in_thread(backlog=3) as server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                _demo_consumer.consume, server.url, server.push_url, str(tmp_path / "db"), str(handled)
            )
            await anyio.to_thread.run_sync(server.stats.wait_for, lambda stats: stats.websockets_open)
            server.publish(1)
            # The next empty answer may belong to an earlier request. The one after it means that nothing is left.
            enough = server.stats.empty + 2
            await anyio.to_thread.run_sync(server.stats.wait_for, lambda stats: stats.empty >= enough)
            handlers[signal.SIGTERM](signal.SIGTERM, None)
    lines = _demo.read_calls(handled)
    assert len({line.id for line in lines}) == len(lines) == 4
    assert all(line.entered >= line.published and line.pid == os.getpid() for line in lines)


def test_the_consumer_of_the_demo_ends_when_its_input_is_closed(monkeypatch):
    ended, (reading, writing) = threading.Event(), os.pipe()
    monkeypatch.setattr(os, "kill", lambda *_: ended.set())
    _demo_consumer.end_with_parent(reading)
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
    runpy.run_module(_demo_consumer.__name__, run_name="__main__")
    assert ran == [("consume", ("a", "b", "c", "d"))]
    assert len(watched) == 1


def test_progress_overwrites_one_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _demo._show("1")
    _demo._show("2")
    _demo._say("stays")
    assert capsys.readouterr().out == "\r\x1b[K1\r\x1b[K2\r\x1b[Kstays\n"


def test_only_lines_that_stay_are_printed_if_stdout_is_not_a_terminal(capsys):
    _demo._show("1")
    _demo._say("stays")
    assert capsys.readouterr().out == "stays\n"
