"""`push-to-poll tail`: messages on stdout, sentences on stderr, exit codes."""

import errno
import functools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import msgspec
import pytest

import push_to_poll_client
from push_to_poll_client import (
    CloudEvent,
    FetchRequest,
    HTTPFeed,
    ListenerError,
    Message,
    PushToPollError,
    SQLiteStore,
    SSEListener,
    StopConsumer,
    StoreBusy,
    Throttled,
    WebSocketListener,
)
from push_to_poll_client.cli import _output, _tail, main
from push_to_poll_client.cli._output import Exit, exit_code_for
from push_to_poll_client.stores._sqlite.reader import SQLiteReader
from push_to_poll_client.stores.reader import all_dead_letters
from push_to_poll_client.testing import FakeFeed, serve_in_thread
from tests.support import command_line
from tests.support.command_line import BACKENDS, COMMAND, Broken, on, stderr_lines, typed, with_dev_full
from tests.support.forms import GUARD, form


@pytest.fixture
def server():
    with serve_in_thread(backlog=3) as server:
        yield server


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    on(request.param, monkeypatch)


@pytest.fixture
def tail(capfdbinary, backend):
    return functools.partial(command_line.tail, capfdbinary)


def start(*arguments):
    return command_line.start("tail", *arguments)


def test_once_prints_a_line_for_each_message_and_ends(server, tail):
    code, lines, err = tail(server.url, "--once")
    assert code == Exit.DONE
    assert len(lines) == 3
    assert lines[0].keys() >= {"id", "source", "type", "data"}
    assert err == ""


def test_tail_with_a_state_file_prints_each_message_only_once(server, tail, tmp_path):
    state = str(tmp_path / "state.db")
    tail(server.url, "--once", "--store", state)
    server.publish(2)
    assert len(tail(server.url, "--once", "--store", state)[1]) == 2
    assert tail(server.url, "--once", "--store", state)[1] == []


def test_a_printed_line_has_the_original_members_of_the_event():
    for event in (
        {"id": "1", "source": "s", "data": {"a": [1, None]}, "region": "north"},
        {"id": "1", "source": "s", "data_base64": "AAEC"},
        {"id": "1", "source": "s", "method": "DELETE"},
    ):
        assert json.loads(_output.json_line(CloudEvent.from_json(json.dumps(event).encode()))) == event
    assert json.loads(_output.json_line(Message("1", {"a": 1}))) == {"id": "1", "data": {"a": 1}}


def test_a_feed_longer_than_one_poll_is_read_to_its_end(tail, monkeypatch):
    consumer_of = _tail.Consumer
    monkeypatch.setattr(_tail, "Consumer", lambda *args, **rest: consumer_of(*args, max_poll_time=1e-9, **rest))
    with serve_in_thread(backlog=25, page_size=10) as server:
        code, lines, _ = tail(server.url, "--once")
    assert (code, len(lines)) == (Exit.DONE, 25)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required: URL"),
        (["ftp://x/feed"], "url"),
        (
            ["http://127.0.0.1:1/feed", "--fallback-interval", "soon"],
            "argument --fallback-interval: invalid float value;",
        ),
        (
            ["http://127.0.0.1:1/feed", "--fallback-interval", "-1"],
            "--fallback-interval must be finite and above 0",
        ),
        (["http://127.0.0.1:1/feed", "--max-wait", "nan"], "--max-wait must be finite and above 0, got nan"),
        (["http://127.0.0.1:1/feed", "--push", "ftp://x"], "--push must be a websocket (ws://, wss://) or"),
        (["http://127.0.0.1:1/feed", "--once", "--push", "ws://x"], "--once does not wait for pushes"),
        (
            ["http://127.0.0.1:1/feed", "--token-env", "NOT_SET"],
            "--token-env: the environment variable is not set or empty",
        ),
        (["http://127.0.0.1:1/feed", "--store", ""], "--store must name a file, or be a postgresql:// URL"),
        (
            ["http://127.0.0.1:1/feed", "--once", "--on-failure", "x"],
            "--on-failure must be one of stop, dead-letter, skip",
        ),
        (
            ["http://127.0.0.1:1/feed", "--once", "--on-failure", "dead-letter"],
            "--on-failure dead-letter needs --store",
        ),
        (["http://127.0.0.1:1/feed", "--once", "--start", ""], "--start must be a cursor of the feed"),
        (["http://127.0.0.1:1/feed", "--once", "--start", "latest"], "HTTPFeed has no latest()"),
        (
            ["http://127.0.0.1:1/feed", "--once", "--start", "Inception"],
            "--start must be 'inception', 'latest' or a cursor of the feed, got 'Inception'; use 'inception'",
        ),
    ],
)
def test_wrong_arguments_are_reported_in_one_sentence_with_exit_code_2(arguments, says, capsys):
    code = typed("tail", *arguments)
    err = capsys.readouterr().err
    assert code == Exit.USAGE
    assert says in err
    assert err.count("\n") == 1


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == Exit.USAGE
    assert "COMMAND" in capsys.readouterr().err


def test_a_feed_that_cannot_be_reached_gives_exit_code_3(tail):
    code, lines, err = tail("http://127.0.0.1:1/feed", "--once")
    assert (code, lines) == (Exit.FEED, [])
    assert err.startswith("push-to-poll: FeedError: ")
    assert err.count("\n") == 1


def test_tail_without_once_ends_when_the_feed_is_gone(server, tail):
    server.faults.set(fail_next=1, fail_status=410)
    code, _, err = tail(server.url)
    assert code == Exit.FEED
    assert "FeedGone" in err


def test_an_unreadable_event_is_a_process_error_with_exit_code_4(server, tail):
    server.faults.undecodable_next = 1
    server.publish(1)
    code, _, err = tail(server.url, "--once")
    assert code == Exit.MESSAGE
    assert "ProcessError" in err


def test_on_failure_skip_skips_an_unreadable_event(server, tail):
    server.faults.undecodable_next = 1
    server.publish(2)
    code, lines, err = tail(server.url, "--once", "--on-failure", "skip")
    assert (code, len(lines)) == (Exit.DONE, 4)
    assert "failed (attempt 1), skipped: DecodeError" in err


def test_on_failure_dead_letter_keeps_an_unreadable_event_as_a_dead_letter(server, tail, tmp_path):
    state = str(tmp_path / "state.db")
    server.faults.undecodable_next = 1
    server.publish(2)
    code, lines, err = tail(server.url, "--once", "--on-failure", "dead-letter", "--store", state)
    assert (code, len(lines)) == (Exit.DONE, 4)
    assert "failed (attempt 1), kept as a dead letter: DecodeError" in err
    (letter,) = all_dead_letters(SQLiteReader(state), server.url)
    assert letter.attempts == 0
    assert tail(server.url, "--once", "--store", state)[:2] == (Exit.DONE, [])


def typed_on_a_full_disk(*arguments):
    """Run it with a buffered stdout, which Python flushes at exit. PYTHONUNBUFFERED would prevent this."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        return subprocess.run(
            [*COMMAND, *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            env=buffered,
            text=True,
            timeout=GUARD,
            check=False,
        )


@with_dev_full
@pytest.mark.parametrize("policy", form(["dead-letter"], ["stop", "skip", "dead-letter"]))
def test_messages_are_not_settled_when_standard_output_cannot_be_written(server, policy, tmp_path, capfdbinary):
    state = str(tmp_path / "state.db")
    arguments = [server.url, "--once", "--on-failure", policy, "--store", state]
    for command, number in (["tail", *arguments], 2), (["status", "--store", state], 1):
        done = typed_on_a_full_disk(*command)
        assert done.returncode == Exit.MESSAGE
        assert "cannot write to standard output: No space left on device" in done.stderr
        assert len(stderr_lines(done.stderr)) == number
    code, lines, _ = command_line.tail(capfdbinary, *arguments)
    assert (code, len(lines)) == (Exit.DONE, 3)


def test_write_line_raises_stop_consumer_when_standard_output_cannot_be_written(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(None, OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StopConsumer, match="cannot write to standard output: No space left on device"):
        _output.write_line(Message("1"))


def test_tail_starts_at_the_given_cursor_and_later_continues_at_the_saved_one(server, tail, tmp_path):
    state = str(tmp_path / "state.db")
    first, second, third = (line["id"] for line in tail(server.url, "--once")[1])
    _, lines, _ = tail(server.url, "--once", "--store", state, "--start", first)
    assert [line["id"] for line in lines] == [second, third]
    assert tail(server.url, "--once", "--store", state, "--start", "inception")[1] == []
    assert len(tail(server.url, "--once", "--start", "inception")[1]) == 3


def failing(state, name, delay):
    """State file of a consumer that stopped while its first message waited for a retry."""

    async def fail():
        session = await SQLiteStore(state).claim(name, feed=name)
        (key,) = (message.dedupe_key for message in await first_messages(name))
        attempts = msgspec.json.encode({key: [1, time.time(), time.time() + delay, delay]}).decode()
        await session.commit(cursor=None, records=[], state={"attempts": attempts})
        await session.release()

    anyio.run(fail)


async def first_messages(url):
    feed = HTTPFeed(url)
    try:
        return (await feed.fetch(FetchRequest())).messages[:1]
    finally:
        await feed.aclose()


WAITS = r"[\d:, -]+ WARNING \S+: message '000000000001' failed before this run \(attempt 1\), "


def test_once_waits_until_a_message_may_be_tried_again(server, tail, tmp_path):
    state = str(tmp_path / "state.db")
    began = time.time()
    failing(state, server.url, 1.0)
    code, lines, err = tail(server.url, "--once", "--store", state)
    assert (code, len(lines)) == (Exit.DONE, 3)
    assert re.fullmatch(WAITS + r"retrying in [01]\.\d s: its error was not kept\n", err)
    assert time.time() - began > 1


def test_once_does_not_wait_for_a_message_for_longer_than_a_minute(server, tail, tmp_path):
    state = str(tmp_path / "state.db")
    failing(state, server.url, 200)
    code, lines, err = tail(server.url, "--once", "--store", state)
    assert (code, lines) == (Exit.FEED, [])
    assert re.fullmatch(
        WAITS + r"retrying in (1\d\d\.\d|200\.0) s: its error was not kept\n"
        r"push-to-poll: Throttled: a failed message will be retried in (1\d\d|200) s, and the messages after it "
        r"wait too; run this command again then\n",
        err,
    )


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_an_invalid_state_file_gives_exit_code_5_and_is_left_untouched(server, tail, tmp_path, content):
    path = tmp_path / "state.db"
    path.write_bytes(content)
    code, _, err = tail(server.url, "--once", "--store", str(path))
    assert code == Exit.STATE
    assert str(path) in err
    assert path.read_bytes() == content


def test_the_token_is_sent_to_the_feed_and_never_printed(server, tail, monkeypatch):
    server.faults.authorization = "Bearer canary-secret"
    monkeypatch.setenv("FEED_TOKEN", "canary-secret")
    code, lines, err = tail(server.url, "--once", "--token-env", "FEED_TOKEN", "-vv")
    assert (code, len(lines)) == (Exit.DONE, 3)
    assert "canary-secret" not in err


def test_same_server_accepts_only_a_push_url_with_the_origin_of_the_feed():
    assert _tail.same_server("wss://shop.example/push", "https://shop.example/feed")
    assert _tail.same_server("https://SHOP.example:443/push", "https://shop.example/feed")
    assert _tail.same_server("ws://shop.example:8080/push", "http://shop.example:8080/feed")
    assert not _tail.same_server("wss://push.example/", "https://shop.example/feed")
    assert not _tail.same_server("ws://shop.example:81/", "http://shop.example/feed")
    assert not _tail.same_server("ws://shop.example:443/", "https://shop.example/feed")


@pytest.mark.parametrize(
    ("push", "kind", "token"),
    [
        ("wss://shop.example/push", WebSocketListener, "t"),
        ("WS://shop.example/push", WebSocketListener, None),
        ("https://shop.example/push", SSEListener, "t"),
        ("https://push.example/push", SSEListener, None),
    ],
)
def test_the_scheme_of_a_push_url_selects_the_listener(push, kind, token, monkeypatch):
    made = []

    def make(url, *, auth):
        made.append((url, auth))
        return kind(url, auth=auth)

    monkeypatch.setitem(_tail._LISTENER_TYPES, push.partition(":")[0].lower(), make)
    assert isinstance(_tail.listener_for(push, feed="https://shop.example/feed", token="t"), kind)
    assert made == [(push, token)]


@pytest.mark.parametrize(
    "url", ["ws://shop.example:pass-word", "https://u:pass-word/x@shop.example", "pass-word", "ftp://pass-word"]
)
def test_the_error_for_an_invalid_push_url_hides_its_password(url):
    with pytest.raises(ValueError, match="--push") as caught:
        _tail.listener_for(url, feed="https://shop.example/feed", token="t")
    assert "pass-word" not in str(caught.value)


def test_control_characters_of_an_argument_are_escaped_in_a_short_error(monkeypatch, capsys):
    def refuse(*_):
        raise ValueError("\x1b[2J\r\nforged: " + "x" * 10_000)

    monkeypatch.setattr(_tail, "_consumer", refuse)
    assert typed("tail", "http://127.0.0.1:1/feed") == Exit.USAGE
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.isprintable()
    assert len(sentence) < 600


def test_an_unexpected_error_shows_a_traceback_only_with_vv(server, tail, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(_tail, "_consumer", broken)
    code, _, err = tail(server.url)
    assert code == Exit.BUG
    assert err.splitlines()[-1].startswith("push-to-poll: ZeroDivisionError: oops; this is a bug")
    assert "Traceback" not in err
    assert "Traceback" in tail(server.url, "-vv")[2]


def test_an_unexpected_error_in_a_poll_is_reported_as_a_bug(server, tail, monkeypatch):
    async def broken(self, **_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(_tail.Consumer, "poll_now", broken)
    code, _, err = tail(server.url, "--once")
    assert code == Exit.BUG
    assert "push-to-poll: ZeroDivisionError: oops; this is a bug" in err


def test_once_reads_all_pages_of_a_feed_that_asks_for_retry_after(tail, monkeypatch):
    feed = FakeFeed(page_size=1, retry_after=0.1)
    feed.publish(3)
    monkeypatch.setattr(_tail, "HTTPFeed", lambda *_, **__: feed)
    code, lines, _ = tail("http://127.0.0.1:1/feed", "--once")
    assert (code, [line["id"] for line in lines]) == (Exit.DONE, ["1", "2", "3"])


def test_every_error_has_its_exit_code():
    assert exit_code_for(Throttled("wait", until=0.0, retry_after=0.0)) is Exit.FEED
    assert exit_code_for(StoreBusy("taken")) is Exit.STATE
    assert exit_code_for(ListenerError("gone")) is Exit.PUSH
    assert exit_code_for(PushToPollError("?")) is Exit.BUG


@pytest.mark.parametrize("channel", form(["push_url"], ["push_url", "sse_url"]))
def test_tail_prints_a_pushed_message_and_ends_cleanly_on_ctrl_c(server, tmp_path, channel):
    state = str(tmp_path / "state.db")
    with start(server.url, "--push", getattr(server, channel), "--store", state) as process:
        lines = [process.stdout.readline() for _ in range(3)]
        (published,) = server.publish(1)
        lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=GUARD)
    assert [json.loads(line)["id"] for line in lines][-1] == published
    assert (process.returncode, out, stderr_lines(err)) == (Exit.INTERRUPTED, "", [])


@pytest.mark.parametrize("once", [["--once"], []])
def test_sigterm_ends_tail_cleanly_and_printed_messages_are_recorded(once, server, tmp_path, capfdbinary):
    """Before the signal, the state file is in use, and a second command reports this in one sentence."""
    state = str(tmp_path / "state.db")
    with start(server.url, "--store", state) as process:
        for _ in range(3):
            process.stdout.readline()
        code, lines, err = command_line.tail(capfdbinary, server.url, *once, "--store", state)
        process.terminate()
        process.communicate(timeout=GUARD)
    assert (code, lines, len(stderr_lines(err))) == (Exit.STATE, [], 1)
    assert state in err
    assert process.returncode == Exit.TERMINATED
    assert command_line.tail(capfdbinary, server.url, "--once", "--store", state)[:2] == (Exit.DONE, [])


def test_ctrl_c_ends_tail_with_once_during_a_fetch(server, tail):
    server.faults.stall_next = 1

    def interrupt():
        server.stats.wait_for(lambda stats: stats.fetches >= 1)
        os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=interrupt)
    visitor.start()
    assert tail(server.url, "--once") == (Exit.INTERRUPTED, [], "")
    visitor.join(GUARD)


@pytest.mark.parametrize("with_command", [False, True])
def test_a_second_signal_exits_at_once_and_kills_the_command(backend, monkeypatch, with_command):
    codes, exited, told = [], anyio.Event(), []

    class Command:
        """Command that records its calls."""

        def finish_until(self, deadline):
            assert deadline > anyio.current_time()
            told.append("finish")

        def kill(self):
            told.append("kill")

    def exit_at_once(code):
        codes.append(code)
        exited.set()

    async def run_for_ever():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.fail_after(GUARD, shield=True):
                os.kill(os.getpid(), signal.SIGINT)
                await exited.wait()

    monkeypatch.setattr(os, "_exit", exit_at_once)
    anyio.run(_tail.until_signalled, run_for_ever, Command() if with_command else None)
    assert codes == [Exit.TERMINATED]
    assert told[:2] == (["finish", "kill"] if with_command else [])


def test_ctrl_c_before_signal_handlers_are_installed_ends_without_output(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_tail, "_consumer", interrupted)
    assert typed("tail", "http://127.0.0.1:1/feed") == Exit.INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_closed_output_pipe_is_not_an_error(server):
    server.publish(2000)
    with start(server.url) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=GUARD) == Exit.DONE
        assert stderr_lines(process.stderr.read()) == []


@pytest.mark.parametrize("options", [[], ["--once"]])
def test_a_broken_pipe_error_in_this_process_is_not_an_error(server, backend, monkeypatch, tmp_path, options):
    with (tmp_path / "stdout").open("w") as file:
        monkeypatch.setattr(sys, "stdout", Broken(file, BrokenPipeError()))
        assert main(["tail", server.url, *options]) == Exit.DONE
        file.write("to the null device")
    assert (tmp_path / "stdout").read_text() == ""


def test_the_package_can_be_run_as_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["python", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("push_to_poll_client", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"push-to-poll {push_to_poll_client.__version__}\n"


def test_the_installed_command_prints_help_with_all_exit_codes():
    command = Path(sys.executable).with_name("push-to-poll")
    help_ = subprocess.run([command, "tail", "--help"], capture_output=True, text=True, timeout=GUARD, check=True)
    for code in Exit:
        assert f"\n  {code.value} " in help_.stdout
