"""The Django example stores each order exactly once.

Each command of Django is a process: a process can configure Django only once.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from push_to_poll_client.testing import serve_in_thread
from tests.support.forms import GUARD

PROJECT = Path(__file__).parents[2] / "examples" / "django_orders"
PAGE = (Path(__file__).parents[2] / "docs" / "databases.md").read_text()
COMMAND = "orders/management/commands/consume_orders.py"

ORDERS = [{"number": str(number), "customer": "Ada", "cents": 995} for number in range(3)]


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    directory = tmp_path_factory.mktemp("migrated")
    manage(directory, "migrate", "--verbosity=0")
    return directory


@pytest.fixture
def shop(migrated, tmp_path):
    shutil.copy(migrated / "shop.db", tmp_path)
    return tmp_path


def run(directory, *command):
    environment = os.environ | {"ORDERS_DIR": str(directory)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD,
    )


def manage(directory, *arguments):
    ended = run(directory, "manage.py", *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended


def orders(directory):
    with contextlib.closing(sqlite3.connect(directory / "shop.db")) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM orders_order ORDER BY id")]


def test_the_command_stores_each_order_once_also_without_its_state(shop):
    with serve_in_thread() as server:
        server.publish(ORDERS[:2])
        manage(shop, "consume_orders", "--once", server.url)
        assert orders(shop) == ["0", "1"]
        (shop / "consumer.db").unlink()  # more than any crash loses: all messages come again
        server.publish(ORDERS[2:])
        manage(shop, "consume_orders", "--once", server.url)
    assert orders(shop) == ["0", "1", "2"]


KILLED = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
from django.core.management import call_command
from django.db.backends.sqlite3.base import DatabaseWrapper
commits = 0
commit = DatabaseWrapper._commit
def dying_commit(self):
    global commits
    commits += 1
    if commits == 2 and WHEN == "before":
        os._exit(9)
    commit(self)
    if commits == 2:
        os._exit(9)
DatabaseWrapper._commit = dying_commit
call_command("consume_orders", URL, once=True)
"""


@pytest.mark.parametrize(("when", "stored"), [("before", 1), ("after", 2)])
def test_an_order_is_stored_once_if_the_process_is_killed_at_its_commit(shop, when, stored):
    with serve_in_thread() as server:
        server.publish(ORDERS)
        head = (
            f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'settings'; WHEN, URL = {when!r}, {server.url!r}"
        )
        assert run(shop, "-c", f"{head}\n{KILLED}").returncode == 9
        assert len(orders(shop)) == stored
        manage(shop, "consume_orders", "--once", server.url)
    assert orders(shop) == ["0", "1", "2"]


SQL = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import anyio, django
django.setup()
from django.conf import settings
from django.db.backends.sqlite3._functions import register
from orders.models import Order
from push_to_poll_client import Consumer, HTTPFeed, SQLiteStore
BLOCK
async def main():
    await Consumer(HTTPFeed(URL), store=store, name="sql", process=process).catch_up()

anyio.run(main)
def process(message):
    register(store.connection)
try:
    anyio.run(Consumer(HTTPFeed(URL), store=store, name="django", process=process, retry=None).catch_up)
except Exception as error:
    print(error)
"""


def test_sql_through_the_stores_connection_fills_the_table_of_a_model(shop):
    block = next(part for part in PAGE.split("```python\n") if "_meta.db_table" in part).split("```")[0]
    with serve_in_thread() as server:
        server.publish(ORDERS)
        program = f"URL = {server.url!r}\n{SQL}".replace("BLOCK", block)
        ended = run(shop, "-c", program)
    assert orders(shop) == ["0", "1", "2"], ended.stderr
    # Django's own connection could not be the store's.
    assert "must not call create_function() on the store's connection" in ended.stdout


def test_the_page_shows_the_handler_of_the_example():
    source = (PROJECT / COMMAND).read_text()
    handler = source[source.index("def process(") : source.index("async def consume(")].strip()
    assert handler in PAGE


def test_the_models_have_no_change_without_a_migration(tmp_path):
    manage(tmp_path, "makemigrations", "--check", "--verbosity=0")


def test_a_feed_that_refuses_ends_the_command_with_an_error(shop):
    with serve_in_thread() as server:
        ended = run(shop, "manage.py", "consume_orders", "--once", server.url.replace("/feed", "/nothing"))
    assert ended.returncode == 1
    assert "CommandError: " in ended.stderr
