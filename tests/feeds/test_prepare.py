"""A feed that is prepared does nothing slow in its first fetch."""

import subprocess
import sys

PROGRAM = """
import sys
import anyio
from push_to_poll_client import FeedError, FetchRequest, HTTPFeed

feed = HTTPFeed("http://127.0.0.1:1/")
feed.prepare()
before = {*sys.modules}

async def fetch():
    try:
        await feed.fetch(FetchRequest(cursor=None))
    except FeedError:
        pass
    await feed.aclose()

anyio.run(fetch)
print(*sorted({name.partition(".")[0] for name in {*sys.modules} - before}))
"""


def test_the_first_fetch_of_a_prepared_feed_imports_no_http_library():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert not {"httpcore", "httpcore2", "trio", "attr"} & {*done.stdout.split()}
