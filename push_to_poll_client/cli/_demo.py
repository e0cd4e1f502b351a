"""`push-to-poll demo`: interrupt a consumer in many ways, and count the messages that it lost.

The demo has three processes: this one, the reference server, and `_demo_consumer.py`, which consumes the feed with
a SQLite store. The other two end with this process, even if it is killed. All figures come from the files of the
handler and from the server, never from the counters of the client.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from push_to_poll_client.cli._demo_consumer import COMMIT_INTERVAL
from push_to_poll_client.cli._output import Exit, UsageError
from push_to_poll_client.cli._parser import Commands

MIN_LIVE = 10
"""Smallest number of live messages that leaves room for four faults."""

STEP_TIMEOUT = 20.0
"""Seconds to wait for each step of the demo. Messages that are still missing count as lost."""

# -P: do not import from the current directory.
_PYTHON_MODULE = [sys.executable, "-P", "-m"]


def add_to(commands: Commands) -> None:
    parser = commands.add(
        "demo",
        run,
        help="run a server and a consumer, break things between them, and count lost messages",
        description="Start a server with a backlog and a consumer that catches up with it. Then publish live "
        "messages, while the server drops a fifth of the pushes, cuts the connection twice and answers 503 once, "
        "and the consumer is killed and restarted. At the end, count the messages that the consumer processed. "
        "The demo takes half a minute and needs the extra `serve`.",
    )
    parser.add_argument(
        "--backlog",
        metavar="N",
        type=int,
        default=20_000,
        help="messages in the feed at the start (default: 20000)",
    )
    parser.add_argument(
        "--live", metavar="N", type=int, default=200, help="messages published after that (default: 200)"
    )


def run(options: argparse.Namespace) -> Exit:
    if options.backlog < 0 or options.live < MIN_LIVE:
        raise UsageError(
            f"--backlog must be at least 0 and --live at least {MIN_LIVE}, got {options.backlog} "
            f"and {options.live}"
        )
    if find_spec("uvicorn") is None:
        raise UsageError("demo needs uvicorn, which is not installed: pip install 'push-to-poll-client[serve]'")
    directory = Path(tempfile.mkdtemp(prefix="push-to-poll-demo-"))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(Exit.TERMINATED))
    try:
        passed = _show_all(directory, options.backlog, options.live)
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(directory)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if not passed:
        print(f"FAILED: the consumer's log and the handler's file are in {directory}")
        return Exit.BUG
    shutil.rmtree(directory)
    return Exit.DONE


def _show_all(directory: Path, backlog: int, live: int) -> bool:
    """Run the demo, print the figures, and return True if they and the consumer's exit code are right."""
    handled = directory / "handled"

    def processed() -> int:
        return len({call.id for call in read_calls(handled)})

    with (
        closing(ServerProcess(backlog)) as server,
        closing(ConsumerProcess(directory, handled, server.addresses)) as consumer,
    ):
        _wait("catching up", processed, backlog)
        calls = read_calls(handled)
        took = calls[-1].entered - calls[0].entered if calls else 0.0
        _say(f"caught up with {len(calls):,} messages in {took:.1f} s")
        _wait("connecting", lambda: int(server.get("/stats")["websockets_open"]), 1)
        polls, live_since = _polls(server.get("/stats")), time.monotonic()
        faults = _go_live(server, consumer, live)
        _wait("settling", processed, backlog + live)
        stopped_well = consumer.end(signal.SIGTERM) == 0
        calls = read_calls(handled)
        nothing_lost = _print_figures(server, calls, polls)
        sent = {push["cursor"]: push["at"] for push in server.get("/pushes") if push["sent"]}
        _print_latencies([call for call in calls if call.published >= live_since], sent, faults)
    return nothing_lost and stopped_well


def _go_live(server: "ServerProcess", consumer: "ConsumerProcess", live: int) -> list[float]:
    """Publish live messages, cause the faults meanwhile, and return the time of each fault."""
    began: list[float] = []
    # The faults come at a sixth, a third, a half and three quarters of the way.
    faults = {
        live * 33 // 200: ("the connection is cut", {"close_websockets": 1012}),
        live * 73 // 200: ("a 503 is answered", {"fail_next": 1, "fail_status": 503}),
        live * 113 // 200: ("the consumer is killed", {}),
        live * 153 // 200: ("the connection is cut", {"close_websockets": 1012}),
    }
    server.post("/faults", {"drop_fraction": 0.2})
    for number in range(1, live + 1):
        server.post("/publish", 1)
        if number in faults:
            what, fault = faults[number]
            _say(f"live: {what}")
            began.append(time.monotonic())
            if fault:
                server.post("/faults", fault)
            else:
                consumer.end(signal.SIGKILL)
                consumer.start()
        _show(f"live: {number} published")
        # Each ten messages: a burst of four, five at a steady pace, a pause, one message, a pause. Every fifth
        # push is dropped, the push of the tenth message too. With a pause around it, only the timer finds that
        # message.
        time.sleep({9: 0.2, 0: 0.6}.get(number % 10, 0.0 if number % 10 < 4 else 0.03))
    return began


class ServerProcess:
    """The reference server in its own process, with `backlog` messages in the feed."""

    def __init__(self, backlog: int) -> None:
        command = [*_PYTHON_MODULE, "push_to_poll_client.testing.server", f"--backlog={backlog}", "--until-eof"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None  # for the type checker  # noqa: S101
        self.addresses: dict[str, str] = json.loads(self.process.stdout.readline())
        self.http = httpx.Client(base_url=self.addresses["base_url"], trust_env=False)

    def get(self, path: str, **query: str) -> Any:
        return self.http.get(path, params=query).json()

    def post(self, path: str, content: Any) -> None:
        self.http.post(path, json=content).raise_for_status()

    def close(self) -> None:
        self.http.close()
        self.process.communicate(timeout=STEP_TIMEOUT)


class ConsumerProcess:
    """Runs `_demo_consumer.py` in a process that can be killed and restarted."""

    def __init__(self, directory: Path, handled: Path, addresses: Mapping[str, str]) -> None:
        urls = [addresses["url"], addresses["push_url"]]
        module = "push_to_poll_client.cli._demo_consumer"
        self._command = [*_PYTHON_MODULE, module, *urls, str(directory / "orders.db"), str(handled)]
        self._log = (directory / "consumer.log").open("ab")
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "no_proxy": "127.0.0.1"},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def end(self, number: signal.Signals) -> int:
        """Send a signal to the process, wait for its end, and return its exit code."""
        self._process.send_signal(number)
        self._process.communicate(timeout=STEP_TIMEOUT)
        return self._process.returncode

    def close(self) -> None:
        self.end(signal.SIGKILL)
        self._log.close()


class HandlerCall(NamedTuple):
    """One call of the handler, from its file. Times come from `time.monotonic()`."""

    id: str
    published: float  # by the server
    entered: float  # the start of the handler
    pid: int  # the process of the handler


def read_calls(path: Path) -> Sequence[HandlerCall]:
    """Read the complete lines of the handler's file: a killed process may leave half a line."""
    text = path.read_bytes() if path.exists() else b""
    return msgspec.json.Decoder(HandlerCall).decode_lines(text[: text.rfind(b"\n") + 1])


def processed_twice(calls: Sequence[HandlerCall]) -> tuple[set[str], set[str]]:
    """Return the ids processed more than once, and the ids among them that the kill does not explain."""
    # A kill may repeat the messages that the first process handled in its last `COMMIT_INTERVAL`. The next process
    # may handle these once more (G7).
    by_id: dict[str, list[HandlerCall]] = defaultdict(list)
    for call in calls:
        by_id[call.id].append(call)
    twice = {name for name, made in by_id.items() if len(made) > 1}
    killed = calls[0].pid if calls else 0
    since = max((call.entered for call in calls if call.pid == killed), default=0.0) - COMMIT_INTERVAL
    excused = {
        name
        for name in twice
        if [call.pid == killed for call in by_id[name]] == [True, False] and by_id[name][0].entered >= since
    }
    return twice, twice - excused


LATENCIES = {
    "latency by push": "the message's own push was sent",
    "latency by fallback": "the push was dropped, and the timer found the message",
    "by a later push": "the push was dropped, and a later push found the message",
    "across a fault": "published or found during a cut, a 503 or the kill",
}


def latencies(
    calls: Sequence[HandlerCall], sent: Mapping[str, float], faults: Sequence[float]
) -> Mapping[str, list[float]]:
    """Group the seconds from publication to handler by the cause of the poll that found the message."""
    # A fault lasts until the handler gets a message that was published after the fault began and whose push was
    # sent. Only the first call for a message counts.
    first = {call.id: call for call in reversed(calls)}.values()
    periods = [
        (began, min((one.entered for one in first if one.published >= began and one.id in sent), default=math.inf))
        for began in faults
    ]
    found: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for call in first:
        if any(began <= call.entered and call.published <= ended for began, ended in periods):
            cause = "across a fault"
        elif call.id in sent:
            cause = "latency by push"
        elif any(call.published <= at <= call.entered for at in sent.values()):
            cause = "by a later push"
        else:
            cause = "latency by fallback"
        found[cause].append(call.entered - call.published)
    return {name: sorted(values) for name, values in found.items()}


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile of sorted values."""
    return values[math.ceil(len(values) * percent / 100) - 1]


def _print_figures(server: ServerProcess, calls: Sequence[HandlerCall], polls_before: int) -> bool:
    """Print the figures, and return True if no message was lost or wrongly processed twice."""
    server.post("/faults", {"fail_next": 0})  # a fault that is left must not hit this process
    ids: list[str] = []
    while page := server.get("/feed", **({"lastEventId": ids[-1]} if ids else {})):
        ids += [event["id"] for event in page]
    published, processed, stats = set(ids), {call.id for call in calls}, server.get("/stats")
    lost, (twice, inexcusable) = published - processed, processed_twice(calls)
    live = _polls(stats) - polls_before
    coalesced = max(0, stats["pushes_sent"] - live)
    _say("")
    _figure("published", len(published), "read from the feed by plain HTTP")
    _figure("processed", len(processed), "recorded by the handler")
    _figure("lost", len(lost), "")
    _figure("processed twice", len(twice), f"{len(inexcusable)} of them not explained by the kill (G7)")
    _figure("polls", _polls(stats), f"{live} after catching up; {stats['fetches']} fetches in all")
    _figure("pushes sent", stats["pushes_sent"], f"{stats['pushes_dropped']} more dropped by the server")
    _figure("pushes coalesced", coalesced, "at least: pushes sent minus polls after catching up")
    return not lost and not inexcusable


def _print_latencies(calls: Sequence[HandlerCall], sent: Mapping[str, float], faults: Sequence[float]) -> None:
    for name, values in latencies(calls, sent, faults).items():
        if values:
            p50, p99 = (percentile(values, percent) * 1000 for percent in (50, 99))
            _figure(name, len(values), f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; {LATENCIES[name]}")


def _figure(name: str, value: int, remark: str) -> None:
    print(f"{name:<20}{value:>7,}   {remark}".rstrip())


def _polls(stats: Mapping[str, Any]) -> int:
    # Each poll ends with an empty page, or with a failure.
    failed: int = sum(count for status, count in stats["statuses"].items() if status != "200")
    return failed + int(stats["empty"])


def _wait(what: str, count: Callable[[], int], enough: int) -> None:
    ends = time.monotonic() + STEP_TIMEOUT
    while (seen := count()) < enough and time.monotonic() < ends:
        _show(f"{what}: {seen:,} of {enough:,}")
        time.sleep(0.05)


def _say(text: str) -> None:
    print(f"\r\x1b[K{text}" if sys.stdout.isatty() else text, flush=True)


def _show(text: str) -> None:
    """Overwrite the progress line of a terminal."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{text}", end="", flush=True)
