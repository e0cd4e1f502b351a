"""Conformance suite for feeds of every kind."""

# ruff: noqa: S101, PLR2004 - a suite asserts, and the figures of an example are the example

import logging
import math
import traceback
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
import httpx
import pytest

from push_to_poll_client._dead_letters import restore_from_json
from push_to_poll_client._exceptions import DecodeError, FeedError, PushToPollError
from push_to_poll_client._protocols import Feed
from push_to_poll_client._types import MAX_CURSOR, Cursor, DeadLetter, FetchRequest, Message, Page, Push

MAX_PAGES = 200
"""Maximum pages of a test feed. A feed that returns more never ends."""


class Step(NamedTuple):
    """One fetched page and the cursor of its request."""

    at: Cursor | None
    page: Page


class FeedWalk:
    """Iterates over the pages of a feed. Not a generator, so stopping early leaves nothing open."""

    def __init__(self, feed: Feed, cursor: Cursor | None = None, *, wait: float = 0.0) -> None:
        self.steps: list[Step] = []
        self._feed = feed
        self._wait = wait
        self._first = self._next = cursor

    def __aiter__(self) -> "FeedWalk":
        return self

    async def __anext__(self) -> Step:
        if self.is_over:
            raise StopAsyncIteration
        if len(self.steps) == MAX_PAGES:
            raise AssertionError(
                f"the walk from {self._first!r} read {MAX_PAGES} pages and found no end; the last next_page "
                f"is {self._next!r}"
            )
        step = Step(self._next, await self._feed.fetch(FetchRequest(self._next, self._wait)))
        self._next = step.page.next_page
        self.steps.append(step)
        return step

    async def finish(self) -> "FeedWalk":
        async for _ in self:
            pass
        return self

    @property
    def is_over(self) -> bool:
        return bool(self.steps) and self._next is None

    @property
    def messages(self) -> list[Message]:
        return [message for step in self.steps for message in step.page.messages]

    @property
    def ids(self) -> list[str]:
        return [message.id for message in self.messages]

    @property
    def keys(self) -> list[tuple[str, str]]:
        return [(message.id, message.dedupe_key) for message in self.messages]

    @property
    def cursors(self) -> list[tuple[Cursor, int]]:
        """Cursors that may be saved, each with the number of messages settled before it."""
        found: list[tuple[Cursor | None, int]] = []
        settled = 0
        for _, page in self.steps:
            for message in page.messages:
                settled += 1
                found.append((message.cursor, settled))
            found.append((page.cursor, settled))
        return [(cursor, settled) for cursor, settled in found if cursor is not None]


async def walk(feed: Feed, cursor: Cursor | None = None) -> FeedWalk:
    return await FeedWalk(feed, cursor).finish()


_TEST_TIMEOUT = 30.0
"""Seconds until a test fails; a correct feed takes milliseconds."""

_WAIT = 10.0
"""Seconds for which a feed should hold an answer, if it can."""

_FETCH_ERRORS = (FeedError, httpx.HTTPError, httpx.InvalidURL)
"""Errors of a failed fetch. A consumer treats errors of httpx like a `FeedError`."""

_LONGEST_NAME = 4096
"""Most characters of an id or a key, because a store keeps each with its dedupe record."""

_GARBAGE_CURSORS = {
    "empty": "",
    "spaces": "  ",
    "a word": "garbage",
    "a number": "-1",
    "a large number": "9" * 400,
    "a NUL": "a\0b",
    "a line": "a\r\nx: b",
    "a URL": "https://elsewhere.invalid/?a=b#c",
    "no URL": "http://[",
    "markup": "<a href='&'>",
    "JSON": '{"a": [1, null]}',
    "deep JSON": "[" * 5000,
    "base64": "eyJhIjogMX0=",
    "enormous": "x" * MAX_CURSOR,
}
"""Cursors that a user may pass, or that an older version of a feed may have saved."""

_BROKEN_RAW = {"nothing": b"", "no text": b"\xff\xfe\0", "cut": b'{"id": "1', "another": b'"x"', "null": b"null"}
"""Invalid `raw` of dead letters, as another version may have saved it."""

_COMPARABLE = (str, int, float, bool, bytes, list, dict, type(None))


class FeedSuite:
    """Base of the test class for your feed: write `make_feed` and `publish`, and pytest runs the tests.

    The tests run on each backend of your `anyio_backend` fixture.

        class TestMyFeed(FeedSuite):
            secrets = ("t0k3n",)

            async def make_feed(self, count):
                self.server = ...
                return MyFeed(self.server.url, token="t0k3n")
            async def publish(self, feed, count):
                ...

    These attributes and methods enable more tests. Tests that need one you do not set are skipped with the reason:

    - `secrets`: credentials of the feed, which must not appear in errors, logs, its name or its messages.
    - `acknowledges = True`: a fetch from a cursor removes the messages before it, as with Telegram or a queue.
    - `repeats = True`: the messages after a cursor may start with some that came before it, for example if the
      cursor is a time that several messages share. Dedupe drops them.
    - `reopen(feed)`: makes another feed of the same server, as after a restart. Saved cursors must still work.
    - `break_next(feed)`: makes the next fetch fail. No message may be lost.
    - `hang(feed)`: makes the server stop in the middle of its next answer. The fetch must end within
      `longest_fetch` seconds (default 30), so give the feed a short timeout.
    - `change(feed)`: changes an existing entry. The feed must return a new message.
    - `publish_late(feed)`: publishes a message before existing ones. The feed must return it.
    - `held(feed)`: returns when the server holds an answer. Needed if a feed with `max_wait` runs in another
    thread.
    - `close(feed)`: cleans up after a test. The default calls `aclose()`.

    The optional members of a feed `latest`, `max_wait`, `read_ahead`, `identity` and `restore` are tested if it
    has them.
    """

    pytestmark: pytest.MarkDecorator = pytest.mark.anyio

    secrets: tuple[str, ...] = ()
    acknowledges: bool = False
    repeats: bool = False
    longest_fetch: float = _TEST_TIMEOUT

    async def make_feed(self, count: int) -> Feed:
        """Make a feed with `count` messages, best on pages of fewer than three."""
        raise NotImplementedError

    async def publish(self, feed: Feed, count: int) -> None:
        """Publish `count` more messages."""
        raise NotImplementedError

    async def held(self, feed: Feed) -> None:  # noqa: ARG002 - for overrides
        """Return when the server holds an answer. The default is for a feed in the same event loop."""
        await anyio.wait_all_tasks_blocked()

    async def close(self, feed: Feed) -> None:
        """Close the feed after a test. The default calls `aclose()` if the feed has it."""
        if hasattr(feed, "aclose"):
            await feed.aclose()

    async def reopen(self, feed: Feed) -> Feed:  # noqa: ARG002 - for overrides
        """Make another feed of the same server, as after a restart. The suite closes it."""
        pytest.skip("the feed's suite does not override reopen()")

    async def break_next(self, feed: Feed) -> None:  # noqa: ARG002 - for overrides
        """Make the next fetch fail, for example by status 500 or a truncated answer."""
        pytest.skip("the feed's suite does not override break_next()")

    async def hang(self, feed: Feed) -> None:  # noqa: ARG002 - for overrides
        """Make the server stop in the middle of its next answer."""
        pytest.skip("the feed's suite does not override hang()")

    async def change(self, feed: Feed) -> None:  # noqa: ARG002 - for overrides
        """Change the entry of one message: a new version is a new message."""
        pytest.skip("the feed's suite does not override change()")

    async def publish_late(self, feed: Feed) -> None:  # noqa: ARG002 - for overrides
        """Publish one message that the feed sorts before existing ones."""
        pytest.skip("the feed's suite does not override publish_late()")

    @asynccontextmanager
    async def _opened(self, count: int) -> AsyncIterator[Feed]:
        with anyio.fail_after(_TEST_TIMEOUT):
            feed = await self.make_feed(count)
            try:
                yield feed
            finally:
                await self.close(feed)

    @asynccontextmanager
    async def _caught_up(self) -> AsyncIterator[tuple[Feed, Cursor]]:
        async with self._opened(2) as feed:
            yield feed, (await walk(feed)).cursors[-1][0]

    def _follows(self, ids: Sequence[str], expected: Sequence[str], known: Collection[str]) -> bool:
        """Return True if the expected messages came, after known ones if the feed repeats."""
        before = max(len(ids) - len(expected), 0)
        return ids[before:] == expected and (not before or (self.repeats and {*ids[:before]} <= {*known}))

    def _reads_twice(self) -> None:
        if self.acknowledges:
            pytest.skip("each fetch of the feed acknowledges its messages, so they cannot be read twice")

    def test_trio_is_installed_so_that_both_event_loops_are_tested(self) -> None:
        """The suite should also run on trio; without trio this test is skipped and names the package."""
        pytest.importorskip(
            "trio", reason="trio is not installed, so the suite ran on asyncio alone: pip install trio"
        )

    # What is there, and where it goes on

    async def test_an_empty_feed_is_at_its_end(self) -> None:
        """The feed must answer with no messages and no next page if it is empty."""
        async with self._opened(0) as feed:
            page = await feed.fetch(FetchRequest())
        assert (list(page.messages), page.next_page) == ([], None)

    async def test_the_inception_reads_everything_each_time_in_the_same_order(self) -> None:
        """The feed must return each message once, with the same id and key each time, and new ones last."""
        self._reads_twice()
        async with self._opened(7) as feed:
            first, second = await walk(feed), await walk(feed)
            await self.publish(feed, 2)
            third = await walk(feed)
        assert len(set(first.ids)) == len({key for _, key in first.keys}) == len(first.ids) == 7
        assert second.keys == first.keys
        assert third.keys[:7] == first.keys
        assert len(third.ids) == 9

    async def test_every_cursor_that_may_be_saved_reads_exactly_the_rest(self) -> None:
        """The feed must continue exactly after each cursor of a message or a page."""
        await self._check_cursors(restart=False)

    async def test_a_saved_cursor_means_the_same_after_a_restart(self) -> None:
        """The feed must keep its whole position in the cursor. Needs `reopen`."""
        await self._check_cursors(restart=True)

    async def _check_cursors(self, *, restart: bool) -> None:
        self._reads_twice()
        async with self._opened(7) as feed:
            found = await walk(feed)
            assert found.cursors, "no page and no message has a cursor"
            for cursor, settled in found.cursors:
                reader = await self.reopen(feed) if restart else feed
                rest = await walk(reader, cursor)
                if restart:
                    await self.close(reader)
                assert self._follows(rest.ids, found.ids[settled:], found.ids[:settled])

    async def test_a_walk_ends_with_a_cursor_behind_all_messages_that_stays(self) -> None:
        """The feed must end with a cursor after all messages; an empty page has no cursor or the same one."""
        async with self._opened(7) as feed:
            found = await walk(feed)
            assert found.cursors, "no page and no message has a cursor"
            cursor, settled = found.cursors[-1]
            page = await feed.fetch(FetchRequest(cursor))
        assert settled == len(found.ids) == 7
        assert self._follows(_ids(page), [], found.ids)
        assert page.next_page is None
        assert page.cursor in {None, cursor}

    async def test_going_on_after_the_end_finds_what_came_since(self) -> None:
        """The feed must return exactly the new messages after its last cursor."""
        async with self._caught_up() as (feed, cursor):
            await self.publish(feed, 2)
            everything = [] if self.acknowledges else (await walk(feed)).ids
            since = await walk(feed, cursor)
        news = everything[-2:] or since.ids[-2:]
        assert len(news) == 2
        assert self._follows(since.ids, news, everything[:-2])

    @pytest.mark.parametrize("count", [0, 3], ids=["empty feed", "feed with messages"])
    async def test_only_what_is_new_comes_after_the_latest_cursor(self, count: int) -> None:
        """The feed must return only new messages after `latest`. For feeds with `latest`."""
        async with self._opened(count) as feed:
            cursor = await _latest(feed)
            quiet = await walk(feed, cursor)
            await self.publish(feed, 2)
            since = await walk(feed, cursor)
            again = await walk(feed, await _latest(feed))
        assert (quiet.ids, len(since.ids), again.ids) == ([], 2, [])

    async def test_an_entry_that_changes_is_a_new_message(self) -> None:
        """The feed must give a changed entry a new id. Needs `change`."""
        async with self._caught_up() as (feed, cursor):
            before = (await walk(feed)).keys
            await self.change(feed)
            since = await walk(feed, cursor)
        new = [key for key in since.keys if key not in before]
        assert len(new) == 1
        assert self.repeats or since.keys == new

    async def test_a_message_that_appears_before_others_is_found(self) -> None:
        """The feed must return a late message, if necessary with known ones. Needs `publish_late`."""
        self._reads_twice()
        async with self._caught_up() as (feed, cursor):
            before = (await walk(feed)).keys
            await self.publish_late(feed)
            late = {*(await walk(feed)).keys}.difference(before)
            since = await walk(feed, cursor)
        assert len(late) == 1
        assert late <= {*since.keys}

    # What may not disturb it

    async def test_a_page_that_is_asked_for_again_is_there_again(self) -> None:
        """The feed must return the same page again, because fetching does not settle messages."""
        async with self._opened(7) as feed:
            async for at, page in FeedWalk(feed):
                again = await feed.fetch(FetchRequest(at))
                assert _ids(again) == _ids(page)
                assert again.cursor == page.cursor
                if again.next_page != page.next_page:
                    assert None not in {again.next_page, page.next_page}
                    ahead = await feed.fetch(FetchRequest(again.next_page))
                    assert _ids(ahead) == _ids(await feed.fetch(FetchRequest(page.next_page)))

    async def test_ids_do_not_depend_on_where_the_feed_ends(self) -> None:
        """A page that is fetched again after more was published begins with the same ids and keys.

        After a crash a consumer fetches a page again, and knows by these what it has processed of it.
        """
        async with self._caught_up() as (feed, cursor):
            await self.publish(feed, 1)
            found = FeedWalk(feed, cursor)
            async for step in found:
                if step.page.messages:
                    break
            await self.publish(feed, 2)
            again = await walk(feed, step.at)
        assert found.keys
        assert again.keys[: len(found.keys)] == found.keys

    async def test_a_push_and_a_way_past_caches_change_nothing(self) -> None:
        """`hint` and `bypass_cache` may make an answer newer, never another."""
        self._reads_twice()
        async with self._opened(2) as feed:
            found = await walk(feed)
            for hint in (Push(found.cursors[-1][0]), Push("elsewhere", ("a topic",))):
                page = await feed.fetch(FetchRequest(hint=hint, bypass_cache=True))
                assert _ids(page) == _ids(found.steps[0].page)

    async def test_two_walks_do_not_disturb_each_other(self) -> None:
        """The feed must serve two consumers that take turns."""
        async with self._two_walks() as (one, other):
            await anext(one)
            await anext(other)
            await one.finish()
            await other.finish()

    async def test_two_walks_at_once_do_not_disturb_each_other(self) -> None:
        """The feed must serve two consumers at the same time."""
        async with self._two_walks() as (one, other), anyio.create_task_group() as tasks:
            tasks.start_soon(one.finish)
            tasks.start_soon(other.finish)

    @asynccontextmanager
    async def _two_walks(self) -> AsyncIterator[tuple[FeedWalk, FeedWalk]]:
        """Yield a walk from the inception and one from a cursor in the middle."""
        self._reads_twice()
        async with self._opened(7) as feed:
            found = await walk(feed)
            middle, settled = found.cursors[len(found.cursors) // 2]
            one, other = FeedWalk(feed), FeedWalk(feed, middle)
            yield one, other
        assert one.ids == found.ids
        assert self._follows(other.ids, found.ids[settled:], found.ids[:settled])

    async def test_a_page_ahead_is_the_same_page(self) -> None:
        """The feed must allow a fetch ahead, and keep earlier pages readable. For feeds with `read_ahead`."""
        async with self._opened(7) as feed:
            if not getattr(feed, "read_ahead", False):
                pytest.skip("the feed has no read_ahead: the next fetch starts after the commit")
            at_once = [(step.at, _contents(step.page.messages)) async for step in FeedWalk(feed)]
            pages = list[Page]()

            async def ask(at: str | None) -> None:
                pages.append(await feed.fetch(FetchRequest(at)))

            for at, _ in at_once:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask, at)
                    tasks.start_soon(feed.fetch, FetchRequest(at_once[-1][0]))
        assert [_contents(page.messages) for page in pages] == [read for _, read in at_once]

    async def test_a_cancelled_fetch_leaves_the_feed_usable(self) -> None:
        """The feed must work after a cancelled fetch, as after a stop."""
        async with self._opened(3) as feed:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await feed.fetch(FetchRequest())
            found = await walk(feed)
        assert len(found.ids) == 3

    async def test_a_closed_feed_opens_again(self) -> None:
        """The feed must work again after it was closed, and allow closing before its first use."""
        async with self._opened(3) as feed:
            await self.close(feed)
            before = await walk(feed)
            await self.close(feed)
            await self.close(feed)
            self._reads_twice()
            after = await walk(feed)
        assert after.ids == before.ids
        assert len(after.ids) == 3

    # Long polling

    async def test_a_wait_with_news_is_answered_at_once(self) -> None:
        """The feed must answer at once if there are messages. For feeds with `max_wait`."""
        async with self._opened(2) as feed:
            _require_long_polling(feed)
            with anyio.fail_after(_WAIT / 2):
                page = await feed.fetch(FetchRequest(wait=_WAIT))
        assert page.messages

    async def test_a_held_answer_comes_with_the_publication(self) -> None:
        """The feed must answer a held request when a message is published. For feeds with `max_wait`."""
        async with self._caught_up() as (feed, cursor):
            _require_long_polling(feed)
            held = FeedWalk(feed, cursor, wait=_WAIT)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(held.__anext__)
                await self.held(feed)
                assert not held.steps
                await self.publish(feed, 1)
        assert len(held.ids) == 1

    async def test_a_held_answer_comes_empty_when_the_wait_ends(self) -> None:
        """The feed must answer with an empty page when the wait ends. For feeds with `max_wait`."""
        async with self._caught_up() as (feed, cursor):
            _require_long_polling(feed)
            page = await feed.fetch(FetchRequest(cursor, wait=0.05))
        assert (list(page.messages), page.next_page) == ([], None)

    async def test_a_held_fetch_that_is_cancelled_leaves_the_feed_usable(self) -> None:
        """The feed must work after a held fetch was cancelled, as by each wake. For feeds with `max_wait`."""
        async with self._caught_up() as (feed, cursor):
            _require_long_polling(feed)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(feed.fetch, FetchRequest(cursor, wait=_WAIT))
                await self.held(feed)
                tasks.cancel_scope.cancel()
            await self.publish(feed, 1)
            since = await walk(feed, cursor)
        assert len(since.ids) == 1

    # What goes wrong

    async def test_a_fetch_that_fails_loses_nothing(self) -> None:
        """The feed must raise `FeedError` or an httpx error, and lose no message. Needs `break_next`."""
        async with self._opened(5) as feed:
            found = FeedWalk(feed)
            while not found.is_over:
                await self.break_next(feed)
                with pytest.raises(_FETCH_ERRORS) as failed:
                    await anext(found)
                _check_seconds(getattr(failed.value, "retry_after", None))
                await anext(found)
            assert len(found.ids) == 5
            self._reads_twice()
            assert (await walk(feed)).ids == found.ids

    async def test_a_fetch_ends_although_the_server_hangs(self) -> None:
        """The feed must end a fetch within `longest_fetch` if the server hangs. Needs `hang`."""
        with anyio.fail_after(self.longest_fetch + 10):
            feed = await self.make_feed(3)
            await self.hang(feed)
            began = anyio.current_time()
            with pytest.raises(_FETCH_ERRORS):
                await feed.fetch(FetchRequest())
            took = anyio.current_time() - began
            found = await walk(feed)
            await self.close(feed)
        assert took <= self.longest_fetch
        assert len(found.ids) == 3

    @pytest.mark.parametrize("cursor", _GARBAGE_CURSORS)
    async def test_a_cursor_that_is_garbage_is_answered_or_refused(self, cursor: str) -> None:
        """The feed must answer any cursor by a page, a `FeedError` or an httpx error, and still work."""
        async with self._opened(3) as feed:
            try:
                page = await feed.fetch(FetchRequest(_GARBAGE_CURSORS[cursor]))
            except _FETCH_ERRORS as error:
                _check_seconds(getattr(error, "retry_after", None))
            else:
                _check_page(page)
            self._reads_twice()
            found = await walk(feed)
        assert len(found.ids) == 3

    async def test_secrets_stay_where_they_are(self, caplog: pytest.LogCaptureFixture) -> None:
        """The feed must not show secrets in errors, logs, messages or its name. Needs `secrets`."""
        if not self.secrets:
            pytest.skip("the feed's suite names no secrets")
        caplog.set_level(logging.INFO)
        async with self._opened(3) as feed:
            said = [repr(feed), str(feed), getattr(feed, "identity", "")]
            said += [await _fetch_and_render(feed, cursor) for cursor in (None, *_GARBAGE_CURSORS.values())]
            if type(self).break_next is not FeedSuite.break_next:
                await self.break_next(feed)
                said.append(await _fetch_and_render(feed))
        text = "\n".join([*said, caplog.text])
        assert not [secret for secret in self.secrets if secret in text]

    # What its parts are

    async def test_what_it_says_of_itself_is_of_use(self) -> None:
        """The feed must have a constant `identity`, `max_wait` in seconds or None, and a boolean `read_ahead`."""
        async with self._opened(1) as feed:
            before = getattr(feed, "identity", "-")
            await walk(feed)
            assert isinstance(before, str)
            assert before
            assert getattr(feed, "identity", "-") == before
            assert isinstance(getattr(feed, "read_ahead", False), bool)
            _check_seconds(getattr(feed, "max_wait", None))

    async def test_pages_are_as_a_consumer_needs_them(self) -> None:
        """The feed must return cursors that every store can save, and valid numbers of seconds."""
        async with self._opened(5) as feed:
            async for _, page in FeedWalk(feed):
                _check_page(page)

    async def test_messages_are_what_they_are_remembered_by(self) -> None:
        """The feed must return constant ids and keys that every store can save."""
        async with self._opened(3) as feed:
            messages = (await walk(feed)).messages
        assert messages
        for message in messages:
            for name in ("id", "dedupe_key"):
                _check_text(getattr(message, name), _LONGEST_NAME)
                with pytest.raises(AttributeError):
                    setattr(message, name, "another")
            assert len({message, message}) == 1
            assert message.id in repr(message)

    async def test_a_dead_letter_is_the_message_again(self) -> None:
        """The feed must restore a message from `raw`, also in a new process."""
        async with self._opened(3) as feed:
            messages = (await walk(feed)).messages
        async with self._opened(0) as other:
            for message in messages:
                again = _restore(other, message.id, message.dedupe_key, message.raw)
                assert (again.id, again.dedupe_key, again.raw) == (message.id, message.dedupe_key, message.raw)
                assert (again.error is None) == (message.error is None)
                assert _data(again) == _data(message)

    @pytest.mark.parametrize("raw", _BROKEN_RAW)
    async def test_a_dead_letter_that_cannot_be_read_says_so(self, raw: str) -> None:
        """The feed must report invalid `raw` by an unreadable message, a library error or a `ValueError`."""
        async with self._opened(0) as feed:
            try:
                message = _restore(feed, "an id", "a key", _BROKEN_RAW[raw])
            except (PushToPollError, ValueError):
                return
        assert isinstance(message, Message)
        if message.error is not None:
            assert (message.id, message.dedupe_key, message.raw) == ("an id", "a key", _BROKEN_RAW[raw])


def _ids(page: Page) -> list[str]:
    return [message.id for message in page.messages]


def _require_long_polling(feed: Feed) -> None:
    if not getattr(feed, "max_wait", None):
        pytest.skip("the feed has no max_wait: it cannot hold an answer")


async def _latest(feed: Any) -> str | None:
    if not hasattr(feed, "latest"):
        pytest.skip("the feed has no latest(), so a consumer cannot start at its end")
    cursor: str | None = await feed.latest()
    _check_cursor(cursor)
    return cursor


async def _fetch_and_render(feed: Feed, cursor: str | None = None) -> str:
    """Return everything that one fetch shows: its page, or its error."""
    try:
        page = await feed.fetch(FetchRequest(cursor))
    except _FETCH_ERRORS as error:
        return "".join(traceback.format_exception(error))
    return f"{page} {page.messages}"


def _restore(feed: Feed, id: str, key: str, raw: bytes) -> Message:
    restore: Any = getattr(feed, "restore", restore_from_json)
    message: Message = restore(DeadLetter(dedupe_key=key, id=id, raw=raw, error="broken"))
    return message


def _contents(messages: Sequence[Message]) -> list[tuple[str, object]]:
    return [(message.id, _data(message)) for message in messages]


def _data(message: Message) -> object:
    """Return the data if it can be compared."""
    try:
        data = message.data
    except DecodeError as error:
        return type(error)
    return data if isinstance(data, _COMPARABLE) else type(data)


def _check_page(page: object) -> None:
    assert isinstance(page, Page)
    assert isinstance(page.messages, Sequence)
    _check_seconds(page.retry_after)
    _check_seconds(page.poll_within)
    for cursor in (page.cursor, page.next_page, *(message.cursor for message in page.messages)):
        _check_cursor(cursor)


def _check_cursor(cursor: object) -> None:
    if cursor is not None:
        _check_text(cursor, MAX_CURSOR)


def _check_seconds(value: object) -> None:
    assert value is None or (isinstance(value, int | float) and math.isfinite(value) and value >= 0), value


def _check_text(value: object, longest: int) -> None:
    """Check a text that every store must save."""
    assert isinstance(value, str)
    assert value.encode(), "it is empty"
    assert len(value) <= longest
    assert "\0" not in value
