"""Consume the feed of orders: `python manage.py consume_orders https://shop.example/orders`.

The feed follows the HTTP Feeds specification (http-feeds.org). Each event is a CloudEvent with `{"number": …,
"customer": …, "cents": …}`. The order and the message's key are stored in one transaction of Django's database.
So each order is stored exactly once, even if this process is killed at any moment.
"""

from typing import Any

import anyio
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import close_old_connections, transaction

from orders.models import Order, ProcessedMessage
from push_to_poll_client import Consumer, HTTPFeed, Message, PushToPollError, SQLiteStore


def process(message: Message) -> None:
    """Store one order and the message's key, both or none."""
    close_old_connections()
    try:
        with transaction.atomic():
            _, is_new = ProcessedMessage.objects.get_or_create(key=message.dedupe_key)
            if is_new:
                order = message.data
                Order.objects.create(number=order["number"], customer=order["customer"], cents=order["cents"])
    finally:
        close_old_connections()


async def consume(url: str, *, once: bool) -> None:
    """Consume orders until stopped; with `once`, until the end of the feed."""
    store = SQLiteStore(settings.CONSUMER_STATE)
    consumer = Consumer(HTTPFeed(url), store=store, name="orders", process=process)
    if once:
        await consumer.catch_up()
    else:
        await consumer.run()


class Command(BaseCommand):
    """Consume the feed of orders."""

    help = "Consume the feed of orders."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the arguments `url` and `--once`."""
        parser.add_argument("url")
        parser.add_argument("--once", action="store_true", help="stop at the end of the feed, for cron")

    def handle(self, *_: Any, url: str, once: bool, **__: Any) -> None:
        """Run the consumer."""
        try:
            anyio.run(lambda: consume(url, once=once))
        except PushToPollError as error:
            raise CommandError(str(error)) from error
