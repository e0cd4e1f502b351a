"""Process the new messages of a feed and exit: for cron, a systemd timer or a scheduled job.

    */5 * * * *  cd /srv/orders && python cron_poller.py https://shop.example/orders orders.db

Each run begins where the last one ended. The exit code is 0 if the run reached the end of the feed or ended after
`LONGEST_RUN`, or if the last run is still working. It is 1 if something failed; the next run continues there.
"""

import sys

import anyio

from push_to_poll_client import CloudEvent, Consumer, HTTPFeed, PushToPollError, SQLiteStore, StoreBusy

LONGEST_RUN = 240.0
"""Seconds after which a run ends, so that it does not overlap the next one. What was processed is saved."""


def process(message: CloudEvent) -> None:
    """Handle one message. A plain function runs in a worker thread, so it may block."""
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
        print("the last run is still working", file=sys.stderr)
        return 0
    except PushToPollError as error:
        print(error, file=sys.stderr)
        return 1
    status = orders.status()
    done = status.counters
    print(f"{done.messages} new, {done.dead_lettered} of them failed, {status.dead_letters} dead letters in all")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(anyio.run(lambda: main(*sys.argv[1:])))
