"""Fork consumers from one process, since their imports take a second.

It reads lines from standard input. For a JSON object with the settings of a consumer, its event loop and its log,
it writes a process id. For a process id, it waits for the end of that process and writes the exit code. It ends
with its standard input, and so do the consumers.
"""

import functools
import json
import os
import sys

import anyio
import nats  # noqa: F401  # imported once for all
import psycopg  # noqa: F401  # see above
import redis.asyncio  # noqa: F401  # see above
import uvicorn  # noqa: F401  # see above
from anyio._backends import _asyncio, _trio  # noqa: F401  # see above

from push_to_poll_client.durable_streams import _subscription  # noqa: F401  # see above
from push_to_poll_client.listeners import postgres, verifiers  # noqa: F401  # see above
from tests.chaos import chaos_consumer, chaos_replica

PROGRAMS = {"chaos_consumer": chaos_consumer.main, "chaos_replica": chaos_replica.main}


def fork(program, settings, backend, log):
    """Fork a consumer. The child does not return."""
    if child := os.fork():
        return child
    chaos_consumer.end_with_parent_process()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), 2)
    try:
        chaos_consumer.log()
        anyio.run(functools.partial(PROGRAMS[program], **settings), backend=backend)
    except BaseException:  # noqa: BLE001  # whatever it is: it is shown, and the parent sees the code
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def main():
    while line := sys.stdin.readline():
        order = json.loads(line)
        if isinstance(order, dict):
            print(fork(**order), flush=True)  # noqa: T201  # to the parent
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)  # noqa: T201  # to the parent


if __name__ == "__main__":
    main()
