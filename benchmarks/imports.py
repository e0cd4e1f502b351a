"""`make bench`: what importing the library costs against importing what it is made of, as a ratio inside one run.

Each import is timed in a process of its own, and both sides take turns; the row shows the smallest CPU times.
"""

import argparse
import os
import sys

DEPENDENCIES = "import httpx, httpcore, websockets.asyncio.client, anyio, msgspec, tenacity, sqlite3"
LIBRARY = "from push_to_poll_client import Consumer, HTTPFeed, SQLiteStore"

WITHOUT_CLICK = "import sys; sys.modules['click'] = None; "
"""Where click and rich are installed, `import httpx` imports them, and takes twice as long."""


def cpu(statement: str) -> float:
    """Return the user and system seconds of a process that runs a statement. The first one may write bytecode."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", WITHOUT_CLICK + statement]
    _, status, used = os.wait4(os.posix_spawn(sys.executable, command, environment), 0)
    if status:
        raise SystemExit(f"{statement!r} failed")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=11)
    options = parser.parse_args()
    cpu(DEPENDENCIES), cpu(LIBRARY)
    dependencies, library = map(
        min, zip(*((cpu(DEPENDENCIES), cpu(LIBRARY)) for _ in range(options.repetitions)), strict=True)
    )
    print(
        f"importing Consumer, HTTPFeed and SQLiteStore: its dependencies alone {dependencies * 1000:.0f} ms of "
        f"CPU, push_to_poll_client {library * 1000:.0f} ms, {library / dependencies:.2f} x as long"
    )


if __name__ == "__main__":
    main()
