"""`tail --exec`: one command for each message, with any message content and any behaviour of the command."""

import contextlib
import functools
import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import psutil
import pytest
from tenacity import wait_fixed

from push_to_poll_client import Message
from push_to_poll_client.cli import _exec, _tail
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.testing import FakeFeed, serve_in_thread
from tests.support import command_line
from tests.support.command_line import BACKENDS, on, stderr_lines
from tests.support.forms import GUARD, form
from tests.support.processes import wait_for_end

MANY = form(500_000, 5_000_000)
"""More bytes than a pipe holds."""

HOSTILE = [
    "$(touch x)",
    "`touch x`",
    "; touch x #",
    "' \" \\ \n \r\n \t \0 \x1b[2J",
    "naïve — 日本語 🦆",
    "--help",
    "x" * MANY,
]

TELL = 'open("told", "w").write(str(told))'


@pytest.fixture(params=BACKENDS)
def anyio_backend(request):
    return request.param


@pytest.fixture
def server():
    with serve_in_thread() as server:
        yield server


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    on(request.param, monkeypatch)


@pytest.fixture
def tail(capfdbinary, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return functools.partial(command_line.tail, capfdbinary)


@pytest.fixture
def python(tmp_path):
    """Return a function that writes a program and returns the argument for `--exec`."""

    def program(text, name="program.py"):
        path = tmp_path / name
        path.write_text(f"import json, os, signal, subprocess, sys, time\n{text}\n")
        return shlex.join([sys.executable, "-S", "-E", str(path)])

    return program


@pytest.fixture
def fifos(tmp_path, monkeypatch):
    """Two FIFOs: the program writes `told` for the test, and the test writes `go` for the program."""
    os.mkfifo(tmp_path / "told")
    os.mkfifo(tmp_path / "go")
    told = os.open(tmp_path / "told", os.O_RDWR)  # read and write: opening does not block

    monkeypatch.chdir(tmp_path)

    def listen():
        assert select.select([told], [], [], GUARD)[0]
        return os.read(told, 100).decode().split()

    yield listen
    os.close(told)


@pytest.fixture
def _go_when_signalled(fifos, monkeypatch):
    """Write to `go` as soon as a signal sets the command's deadline."""
    finish_until = _exec.Command.finish_until

    def go(command, deadline):
        finish_until(command, deadline)
        Path("go").write_text("signal seen")

    monkeypatch.setattr(_exec.Command, "finish_until", go)


@pytest.fixture
def _quick_retry(monkeypatch):
    """Run a failed command again at once; the delays of the default are tested elsewhere."""
    monkeypatch.setattr(_tail, "DEFAULT_RETRY", _tail.DEFAULT_RETRY.copy(wait=wait_fixed(0.01)))


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(_tail, "SHUTDOWN_TIMEOUT", 0.1)


def wait_until_gone(*pids):
    """Wait for killed processes that are not children of this process."""
    for pid in map(int, pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            wait_for_end(psutil.Process(pid))


def test_the_message_is_passed_only_on_standard_input_of_the_command(server, tail, python, tmp_path):
    server.publish(HOSTILE)
    seen = python("""
line = sys.stdin.buffer.read()
assert sys.argv[1:] == ["a b", "$HOME", "*"], sys.argv
assert line.endswith(b"}\\n") and line.count(b"\\n") == 1
assert not any("touch x" in value for value in os.environ.values())
print(json.dumps(json.loads(line)["data"]))
""")
    code, lines, err = tail(server.url, "--once", "--exec", f"{seen} 'a b' '$HOME' '*'")
    assert (code, lines, err) == (Exit.DONE, HOSTILE, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py"]


def test_a_command_may_leave_its_input_unread(server, tail, python):
    server.publish(["x" * MANY, 1])
    assert tail(server.url, "--once", "--exec", python("sys.stdin.close(); print(1)"))[:2] == (Exit.DONE, [1, 1])


def test_processed_messages_are_recorded_and_a_failed_one_is_processed_by_the_next_run(
    server, tail, python, tmp_path
):
    server.publish([1, 2, 3])
    state = str(tmp_path / "state.db")
    code, lines, err = tail(
        server.url,
        "--once",
        "--store",
        state,
        "--exec-attempts=1",
        "--exec",
        python("data = json.load(sys.stdin)['data']; print(data); sys.exit(3 if data == 2 else 0)"),
    )
    assert (code, lines) == (Exit.MESSAGE, [1, 2])
    assert len(stderr_lines(err)) == 2  # the log line, and why the command ended
    assert f"CommandFailed: {sys.executable!r} exited with 3. It and all later messages are not settled" in err
    print_data = python("print(json.load(sys.stdin)['data'])")
    assert tail(server.url, "--once", "--store", state, "--exec", print_data)[:2] == (Exit.DONE, [2, 3])


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("sys.exit(3)", "exited with 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 1)", f"was killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_an_exit_status_other_than_0_fails_the_message_and_names_it(server, tail, python, program, says):
    (name,) = server.publish(1)
    code, lines, err = tail(server.url, "--once", "--exec-attempts", "1", "--exec", python(program))
    assert (code, lines) == (Exit.MESSAGE, [])
    assert f"message {name!r} failed and stops the consumer" in err
    assert says in err
    assert len(stderr_lines(err)) == 2


def test_control_characters_in_an_id_are_quoted(tail, python, monkeypatch):
    feed = FakeFeed()
    feed.publish("\x1b[2J\r\nforged")
    monkeypatch.setattr(_tail, "HTTPFeed", lambda *_, **__: feed)
    code, _, err = tail("http://127.0.0.1:1/feed", "--once", "--exec-attempts=1", "--exec", python("sys.exit(1)"))
    assert code == Exit.MESSAGE
    assert r"'\x1b[2J\r\nforged' failed" in err
    assert len(err.splitlines()) == 2
    assert "\x1b" not in err


@pytest.mark.usefixtures("_quick_retry")
def test_a_command_that_fails_is_run_again(server, tail, python, tmp_path):
    server.publish(1)
    program = python("""
with open("runs", "a") as file:
    file.write("x")
sys.exit(os.stat("runs").st_size < 2)
""")
    code, _, err = tail(server.url, "--once", "--exec", program)
    assert code == Exit.DONE
    assert (tmp_path / "runs").read_text() == "xx"
    assert "failed (attempt 1 of 5), retrying in" in err


def test_the_failure_of_a_command_has_a_traceback_only_with_vv(server, tail):
    server.publish(1)
    arguments = [server.url, "--once", "--exec-attempts=1", "--on-failure=skip", "--exec", "false"]
    assert len(stderr_lines(tail(*arguments)[2])) == 1
    assert "Traceback" in tail("-vv", *arguments)[2]


@pytest.mark.usefixtures("_quick_retry")
def test_a_failing_command_is_run_at_most_exec_attempts_times(server, tail, python, tmp_path):
    server.publish(1)
    program = python('open("runs", "a").write("x"); sys.exit(1)')
    assert tail(server.url, "--once", "--exec-attempts", "2", "--exec", program)[0] == Exit.MESSAGE
    assert (tmp_path / "runs").read_text() == "xx"


def test_a_command_that_hangs_fails_the_message(server, tail, python):
    server.publish(1)
    program = python("time.sleep(3600)")
    code, _, err = tail(server.url, "--once", "--exec-attempts=1", "--exec-timeout=0.1", "--exec", program)
    assert code == Exit.MESSAGE
    assert "did not end within 0.1 s and was terminated" in err


def test_a_command_that_exits_with_0_after_its_timeout_fails_the_message(server, tail, python):
    server.publish(1)
    program = python("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(3600)")
    code, _, err = tail(server.url, "--once", "--exec-attempts=1", "--exec-timeout=0.5", "--exec", program)
    assert code == Exit.MESSAGE
    assert "did not end within 0.5 s and was terminated" in err


@pytest.mark.anyio
async def test_a_command_of_another_user_that_cannot_be_killed_fails_after_its_timeout(monkeypatch):
    """For example started by sudo: it cannot be killed, and must not stop the consumer for ever."""

    class Process:
        """Process of another user."""

        pid, returncode = 4711, None

        async def wait(self):
            await anyio.sleep_forever()

    async def open_process(*_, **__):
        return Process()

    def kill(pid, number):
        assert pid == Process.pid
        signals.append(number)
        raise PermissionError

    signals = []
    monkeypatch.setattr(_exec, "TERM_GRACE", 0.05)
    monkeypatch.setattr(anyio, "open_process", open_process)
    monkeypatch.setattr(os, "killpg", kill)
    with pytest.raises(_exec.CommandFailed, match=r"did not end within 0\.1 s and cannot be killed"):
        await _exec.Command("true", timeout=0.1)(Message("1", None))
    assert signals == [signal.SIGTERM, signal.SIGKILL]


async def overrun(program, fifos):
    """Run the program, stop it after its first output, and return that output."""
    command = _exec.Command(program, timeout=GUARD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(command, Message("1", None))
        told = await anyio.to_thread.run_sync(fifos)
        command.finish_until(anyio.current_time())
        tasks.cancel_scope.cancel()
    return told


@pytest.mark.anyio
async def test_a_command_that_ignores_sigterm_is_killed_with_its_child_processes(python, fifos, monkeypatch):
    monkeypatch.setattr(_exec, "TERM_GRACE", 0.1)
    program = python(f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if child := os.fork():
    told = f"{{os.getpid()}} {{child}}"
    {TELL}
time.sleep(3600)
""")
    pids = await overrun(program, fifos)
    assert len(pids) == 2
    wait_until_gone(*pids)


@pytest.mark.anyio
async def test_child_processes_of_a_command_can_finish_after_sigterm(python, fifos, tmp_path, monkeypatch):
    """SIGTERM goes to the whole group, and the consumer waits for the last process of the group."""
    monkeypatch.setattr(_exec, "TERM_GRACE", GUARD)
    program = python(f"""
def end(*_):
    time.sleep(0.3)
    with open("ended", "w") as file:
        file.write("well")
    os._exit(0)

if not os.fork():
    signal.signal(signal.SIGTERM, end)
    told = "ready"
    {TELL}
time.sleep(3600)
""")
    assert await overrun(program, fifos) == ["ready"]
    assert (tmp_path / "ended").read_text() == "well"


def test_a_command_that_cannot_be_started_fails_the_message(server, tail, tmp_path):
    server.publish(1)
    program = tmp_path / "program"
    program.write_text("neither a script nor a binary")
    program.chmod(0o700)
    code, _, err = tail(server.url, "--once", "--exec-attempts=1", "--exec", "./program")
    assert code == Exit.MESSAGE
    assert "CommandNotStarted: cannot start './program': Exec format error" in err
    assert len(stderr_lines(err)) == 2


@pytest.mark.parametrize("policy", ["skip", "dead-letter"])
def test_a_message_is_not_skipped_or_dead_lettered_when_the_command_cannot_be_started(
    server, tail, tmp_path, policy
):
    server.publish(1)
    program = tmp_path / "program"
    program.write_text("neither a script nor a binary")
    program.chmod(0o700)
    options = ["--store", "state.db", "--exec-attempts=1", "--exec", "./program", "--on-failure", policy]
    assert tail(server.url, "--once", *options)[0] == Exit.MESSAGE
    program.write_text("#!/bin/sh\nexit 1")
    code, _, err = tail(server.url, "--once", *options)
    assert code == Exit.DONE
    assert "failed (attempt 1), " in err


def test_the_command_does_not_see_the_token_in_its_environment(server, tail, python, monkeypatch):
    server.faults.authorization = "Bearer canary-secret"
    monkeypatch.setenv("FEED_TOKEN", "canary-secret")
    monkeypatch.setenv("OTHER", "is kept")
    server.publish(1)
    program = python('print(json.dumps([os.environ.get("FEED_TOKEN"), os.environ["OTHER"]]))')
    code, lines, _ = tail(server.url, "--once", "--token-env", "FEED_TOKEN", "--exec", program)
    assert (code, lines) == (Exit.DONE, [[None, "is kept"]])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--exec", ""], "--exec is empty; give it a command"),
        (["--exec", "   "], "--exec is empty; give it a command"),
        (["--exec", "''"], "--exec: '' was not found; give the name of a program on the PATH, or a path"),
        (["--exec", "echo 'a"], "--exec cannot be split into words: No closing quotation; check the quotes"),
        (["--exec", "no-such-command -x"], "--exec: 'no-such-command' was not found"),
        (["--exec", "./no\x1b[2J"], "was not found"),
        (["--exec", "./plain"], "--exec: './plain' is not executable"),
        (["--exec", "."], "--exec: '.' is not executable"),
        (["--exec", "true", "--exec-timeout", "0"], "--exec-timeout must be finite and above 0, got 0"),
        (["--exec", "true", "--exec-timeout", "nan"], "--exec-timeout must be finite and above 0, got nan"),
        (["--exec", "true", "--exec-attempts", "0"], "--exec-attempts must be at least 1, got 0"),
        (["--exec-timeout", "1"], "--exec-timeout and --exec-attempts need --exec"),
        (["--exec-attempts", "1"], "--exec-timeout and --exec-attempts need --exec"),
    ],
)
def test_an_invalid_command_or_option_is_a_usage_error(tail, tmp_path, arguments, says):
    (tmp_path / "plain").write_text("")
    code, _, err = tail("http://127.0.0.1:1/feed", *arguments)
    assert code == Exit.USAGE
    assert says in err
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ([], signal.SIGINT),
        (["--once"], signal.SIGTERM),
        pytest.param(["--once"], signal.SIGINT, marks=pytest.mark.long_form),
        pytest.param([], signal.SIGTERM, marks=pytest.mark.long_form),
    ],
)
@pytest.mark.usefixtures("_go_when_signalled")
def test_a_signal_lets_the_running_command_finish_and_starts_no_other(server, tail, python, options, number):
    """The command finishes, its message is recorded, and no other command starts."""
    first, second = server.publish(2)
    program = python(f"""
import select
line = json.load(sys.stdin)
if line["id"] != {first!r}:
    sys.exit("another was begun")
go = os.open("go", os.O_RDWR)  # so that neither side waits for the other to open it
os.kill({os.getpid()}, {int(number)})
assert select.select([go], [], [], {GUARD})[0]
print(json.dumps(line["id"]), flush=True)
""")
    options = [*options, "--store", "state.db", "--exec-attempts=1", "--exec", program]
    code, lines, err = tail(server.url, *options)
    assert (code, lines, stderr_lines(err)) == (128 + number, [first], [])
    again = tail(server.url, "--once", "--store", "state.db")[1]
    assert [line["id"] for line in again] == [second]


SLOW = f"""
line = json.load(sys.stdin)
told = os.getpid()
{TELL}
open("go").read()
print(line["id"], flush=True)
"""


@pytest.mark.slow
def test_a_second_signal_kills_the_command(server, python, tmp_path, fifos):
    server.publish(1)
    with command_line.start("tail", server.url, "--exec", python(SLOW), cwd=tmp_path) as process:
        pids = fifos()
        while process.poll() is None:  # the test cannot know if the first signal was handled
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        process.communicate(timeout=GUARD)
    assert process.returncode == Exit.TERMINATED
    wait_until_gone(*pids)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("options", [[], ["--once"]])
def test_a_command_that_exceeds_the_shutdown_timeout_is_ended_and_its_message_not_recorded(
    server, tail, python, fifos, options
):
    server.publish(1)
    program = python(f"told = os.getpid()\n{TELL}\nos.kill({os.getpid()}, signal.SIGTERM)\ntime.sleep(3600)")
    code, lines, _ = tail(server.url, *options, "--store", "state.db", "--exec", program)
    assert (code, lines) == (Exit.TERMINATED, [])
    wait_until_gone(*fifos())
    assert len(tail(server.url, "--once", "--store", "state.db")[1]) == 1


@pytest.mark.anyio
async def test_a_killed_command_raises_command_failed(python, fifos):
    command = _exec.Command(python(f"told = os.getpid()\n{TELL}\ntime.sleep(3600)"), timeout=GUARD)

    async def run():
        with pytest.raises(_exec.CommandFailed, match="was killed by SIGKILL"):
            await command(Message("1", None))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        pids = await anyio.to_thread.run_sync(fifos)
        command.kill()
    wait_until_gone(*pids)


@pytest.mark.anyio
async def test_no_command_is_started_after_a_stop(python):
    command = _exec.Command(python("pass"), timeout=1)
    command.finish_until(anyio.current_time() + 1)
    command.kill()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await command(None)
    assert scope.cancelled_caught
