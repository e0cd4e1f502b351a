"""Process the new messages of a feed and exit: for cron, a systemd timer or a scheduled job.

    */5 * * * *  cd /srv/orders && python cron_poller.py https://shop.example/orders orders.db

Each run begins where the previous one ended. The exit code is 0 if the run reached the end of the feed or its time
limit (`LONGEST_RUN`), or if the previous run has not ended. The exit code is 1 if the feed or the store failed.
The next run then continues at the same place. A message that fails for good becomes a dead letter, and the exit
code stays 0.
"""

import sys

import anyio

from push_to_poll_client import CloudEvent, Consumer, HTTPFeed, PushToPollError, SQLiteStore, StoreBusy

LONGEST_RUN = 240.0
"""Seconds until a run ends, so that it does not overlap the next one. Its progress is saved."""


def process(message: CloudEvent) -> None:
    """Process one message. A plain function runs in a worker thread, so it may block."""
    print(message.id, message.type)


async def main(url: str, state: str) -> int:
    """Read to the end of the feed and return the exit code."""
    orders = Consumer(
        HTTPFeed(url), store=SQLiteStore(state), name="orders", process=process, on_failure="dead_letter"
    )
    try:
        with anyio.move_on_after(LONGEST_RUN):
            await orders.catch_up()
    except StoreBusy:
        print("the previous run has not ended", file=sys.stderr)
        return 0
    except PushToPollError as error:
        print(error, file=sys.stderr)
        return 1
    status = orders.status()
    done = status.counters
    print(f"{done.messages} new, {done.dead_lettered} of them failed, {status.dead_letters} dead letters kept")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(anyio.run(lambda: main(*sys.argv[1:])))
