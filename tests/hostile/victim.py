"""The attacked consumer in its own process, with its memory and event loop measured.

Run by `python -m tests.hostile.victim`. Each line on standard input is a case in JSON; for each a child is
forked, so that a case begins with a small heap whatever the one before it did, and its report comes back as a
line of JSON. Its memory is the peak during the attack minus the resident memory before it.
"""

import contextlib
import functools
import gc
import importlib
import io
import json
import logging
import os
import resource
import signal
import sqlite3
import sys
import time
import traceback

import anyio

from push_to_poll_client import Consumer, HTTPFeed, Push, Record, SQLiteStore, _schedule, cli, listeners
from push_to_poll_client._http.transport import shared_tls_context, user_agent
from push_to_poll_client.listeners import _backoff, _websocket_client
from push_to_poll_client.stores._sqlite import file as file_module
from push_to_poll_client.stores._sqlite import schema
from tests.support.processes import peak_memory, reset_peak_memory, resident_memory

GUARD = 120
"""Seconds after which a case counts as hanging, and an alarm ends the child."""

HTTP_TIMEOUT = 30.0
"""Seconds for a response of the feed: the default."""

TICK = 0.005
"""Seconds between two readings of the clock in the event loop. The longest gap shows how long it was blocked."""

MANY = 10
"""Number of first processed messages whose ids are reported, besides the last one."""

LONGEST = 2_000
"""Characters of a text in the report: enough to see that it is too long."""


def main():
    for line in sys.stdin:
        if not (child := os.fork()):
            signal.alarm(GUARD)
            _answer(json.loads(line))
        _, status = os.waitpid(child, 0)
        if status:
            _write({"died": status})


def _answer(case):
    try:
        _hurry()
        _write(BY[case["by"]](case["backend"], **case["consumer"]))
    except BaseException:  # noqa: BLE001  # the parent raises it
        _write({"died": traceback.format_exc()})
    finally:
        os._exit(0)


def _write(report):
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def _hurry():
    """Shorten the backoff and the timeouts, which are tested elsewhere."""
    file_module.BUSY_TIMEOUT = schema.BUSY_TIMEOUT = 0.2
    _schedule.FIRST_BACKOFF = _schedule.SLOW_BACKOFF = 0.01
    _backoff.FIRST_DELAY = _backoff.BASE_DELAY = _backoff.SLOW_DELAY = 0.01
    _websocket_client.CLOSE_TIMEOUT = 0.2


def opened(backend, path, *, room=None):
    """Claim a name in a state file, read and write.

    Args:
        backend: "asyncio" or "trio".
        path: The file.
        room: Largest size of a file in bytes, as on a full disk. None means no limit.
    """
    if room is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    reset_peak_memory()
    before = resident_memory()
    try:
        said = ["used", *anyio.run(_use, path, backend=backend)]
    except Exception as error:  # noqa: BLE001  # what it may be is the parent's to say
        said = [type(error).__name__, str(error)]
    return {"said": said, "peak": peak_memory() - before}


async def _use(path):
    session = await SQLiteStore(path).claim("c", feed="f")
    try:
        cursor, unseen = session.cursor, sorted(await session.unseen(["a", "b"]))
        await session.fingerprints(["a", "b"])
        letters = await session.dead_letters()
        await session.dead_letter("dead")
        await session.commit(cursor="new", records=[Record("b")], dead_letters=letters[:1], state={"s": "2"})
        return cursor and cursor[:50], unseen
    finally:
        await session.release()


def asked(backend, path):
    """Return the output of `push-to-poll status` for a state file."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["status", "--store", path])
    return {"code": code, "out": out.buffer.getvalue().decode(), "err": err.getvalue()}


async def attacked(url, state, *, fails=False, answer_within=HTTP_TIMEOUT, **options):
    """Consume a good page, then get a hostile response, then recover.

    Args:
        url: The feed: has messages up to "3", is hostile once, and then has "4".
        state: The database file.
        fails: The handler fails, with the message's own text, while the attack lasts.
        answer_within: Seconds for an answer while the attack lasts. A good one may take longer on a busy machine.
        options: Of `HTTPFeed`.
    """
    with Heard() as heard:
        feed = HTTPFeed(url, **options)
        consumer = _consumer(feed, state)
        await consumer.poll_now()
        consumer.fails, feed._http_client._timeout = fails, answer_within
        async with anyio.create_task_group() as tasks:
            async with Watch(tasks) as watch:
                tasks.start_soon(_run, consumer, heard)
                await heard.failed.wait()
            cursor, consumer.fails, feed._http_client._timeout = saved_cursor(state), False, HTTP_TIMEOUT
            status = await _recovered(consumer, heard, tasks)
    return _report(consumer, status, heard, watch, cursor)


async def called(url, state, push, *, kind="WebSocketListener", **options):
    """Consume a good page, then listen to a hostile push channel, then recover.

    Args:
        url: The feed: has messages up to "3", and "4" when the channel is well.
        state: The database file.
        push: The channel: hostile on the first connection.
        kind: Class of the listener.
        options: Of the listener.
    """
    with Heard() as heard:
        listener = getattr(listeners, kind)(push, hint=_cursor_of, **options)
        consumer = _consumer(HTTPFeed(url), state, listeners=[listener])
        await consumer.poll_now()
        async with anyio.create_task_group() as tasks:
            async with Watch(tasks) as watch:
                tasks.start_soon(_run, consumer, heard)
                await heard.failed.wait()
            cursor, status = saved_cursor(state), consumer.status()
            heard.errors.append(("listener", str(status.listeners[0].last_error)))
            await _recovered(consumer, heard, tasks)
    return _report(consumer, status, heard, watch, cursor)


async def _recovered(consumer, heard, tasks):
    """Restart the consumer if it stopped, like an operator, and wait until it has continued."""
    if consumer.status().mode == "stopped":
        tasks.start_soon(_run, consumer, heard)
    await consumer.saw("4")
    status = consumer.status()
    consumer.stop()
    return status


def _cursor_of(message):
    """Make a hint of any text of a hostile server."""
    return Push(cursor=str(getattr(message, "data", message)))


def _consumer(feed, state, *, listeners=()):
    return Victim(feed, store=SQLiteStore(state), listeners=listeners, retry=None, fallback_interval=3600)


def _report(consumer, status, heard, watch, cursor):
    return {
        "peak": watch.peak,
        "kept": watch.kept,
        "blocked": watch.blocked,
        "took": watch.took,
        "errors": [(kind, text[:LONGEST], len(text)) for kind, text in heard.errors],
        "lines": heard.lines,
        "foreign": heard.foreign,
        "cursor": cursor,
        "at_end": saved_cursor(consumer._store.path),
        "processed": [name[:LONGEST] for name in consumer.processed],
        "pushes": sum(listener.pushes for listener in status.listeners),
        "polls": status.counters.polls,
        "status": repr(status),
    }


async def _run(consumer, heard):
    try:
        await consumer.run()
    except Exception as error:  # noqa: BLE001  # what it may be is the parent's to say
        heard.note(error)


class Victim(Consumer):
    """Reads the data of each message, and records its id."""

    processed = ()
    fails = False

    async def process(self, message):
        if self.fails:
            raise ValueError(f"{message.id} {message.data}")
        message.data  # noqa: B018  # it may be what is hostile
        self.processed = [*self.processed[:MANY], message.id]
        self.got.set()

    @functools.cached_property
    def got(self):
        return anyio.Event()

    async def saw(self, name):
        while name not in self.processed:
            self.got = anyio.Event()
            await self.got.wait()


class Heard(logging.Handler):
    """Keeps all log lines in the form that a user sees."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines = []
        self.foreign = []
        self.errors = []
        self.failed = anyio.Event()

    def __enter__(self):
        logging.getLogger().addHandler(self)
        logging.getLogger().setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_):
        logging.getLogger().removeHandler(self)

    def emit(self, record):
        ours = record.name.startswith("push_to_poll_client")
        lines = [line[:LONGEST] for line in self.format(record).split("\n")]
        if ours:
            self.lines += lines
            # A warning with a traceback is of a message; if that ends the run, `run()` has not raised it yet.
            if record.levelno == logging.DEBUG and record.exc_info and record.exc_info[1]:
                self.note(record.exc_info[1])
            if "reconnecting" in record.getMessage():
                self.failed.set()
        else:
            self.foreign += [line for line in lines if not line.isprintable()]

    def note(self, error):
        self.errors.append((type(error).__name__, str(error)))
        self.failed.set()


class Watch:
    """Measures memory and the event loop from its start to its end."""

    def __init__(self, tasks):
        self._tasks = tasks
        self._scope = anyio.CancelScope()
        self.blocked = 0.0

    async def __aenter__(self):
        gc.collect()
        reset_peak_memory()
        self._resident = resident_memory()
        self._began = self._looked = time.monotonic()
        self._tasks.start_soon(self._tick)
        return self

    async def __aexit__(self, *_):
        self._scope.cancel()
        self._look()
        self.took = self._looked - self._began
        self.peak = peak_memory() - self._resident
        gc.collect()
        self.kept = resident_memory() - self._resident

    async def _tick(self):
        with self._scope:
            while True:
                await anyio.sleep(TICK)
                self._look()

    def _look(self):
        self.blocked = max(self.blocked, time.monotonic() - self._looked - TICK)
        self._looked = time.monotonic()


def saved_cursor(state):
    """Return the resident memory, read as by another program."""
    with contextlib.closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True)) as file:
        return file.execute("SELECT cursor FROM push_to_poll_consumer").fetchone()[0]


def _in_a_loop(victim):
    return lambda backend, **options: anyio.run(functools.partial(victim, **options), backend=backend)


BY = {"feed": _in_a_loop(attacked), "push": _in_a_loop(called), "store": opened, "status": asked}
"""Targets of an attack."""

IMPORTED_LATE = (
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "h11",
    "httpcore._async",
    "push_to_poll_client._http.direct_client",
    "websockets.asyncio.client",
    "websockets.trio.client",
)
"""Import the modules that a running consumer imports, on either event loop."""

if __name__ == "__main__":
    # What every victim would make again, and what the garbage collector of each would look through.
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    user_agent()
    shared_tls_context()
    gc.collect()
    gc.freeze()
    main()
