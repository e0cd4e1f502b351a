"""How are the parts of one session put together?"""

from collections.abc import Callable
from functools import cached_property

from push_to_poll_client._polling.behind import Behind
from push_to_poll_client._polling.fetches import Fetches
from push_to_poll_client._polling.gaps import Gaps
from push_to_poll_client._polling.poller import Poller
from push_to_poll_client._polling.polls import Polls
from push_to_poll_client._polling.position import Position
from push_to_poll_client._polling.replay import Replay
from push_to_poll_client._processing.failures import Failures
from push_to_poll_client._processing.handler import BatchHandler, Handler
from push_to_poll_client._processing.hooks import Hooks, SafeHooks, announced
from push_to_poll_client._processing.intake import Intake
from push_to_poll_client._processing.letters import Letters
from push_to_poll_client._processing.options import Processing
from push_to_poll_client._processing.processor import Processor
from push_to_poll_client._processing.progress import Progress
from push_to_poll_client._processing.transactions import in_transaction
from push_to_poll_client._processing.trials import Trials
from push_to_poll_client._processing.workers import Workers
from push_to_poll_client._protocols import Feed, Session, is_transactional
from push_to_poll_client._schedule import Schedule
from push_to_poll_client._settings import Settings
from push_to_poll_client._status import Tally
from push_to_poll_client._types import Clock, Cursor, Push

__all__ = ["Parts"]


class Parts:
    """The parts that live as long as a session, each made of those that it needs when it is asked for first.

    Args:
        feed: What is consumed.
        session: Where progress is kept.
        schedule: Decides when to poll, also after this session.
        tally: Counts, likewise.
        settings: The numbers that the user gave.
        processing: What he said of messages and positions.
        worth_a_poll: Whether the hint of a push is.
        clock: The event loop's.

    Attributes:
        session: As given.
    """

    def __init__(  # noqa: PLR0917  # each is of another type
        self,
        feed: Feed,
        session: Session,
        schedule: Schedule,
        tally: Tally,
        settings: Settings,
        processing: Processing,
        worth_a_poll: Callable[[Push], bool],
        clock: Clock,
    ) -> None:
        self.session = session
        self._feed = feed
        self._schedule = schedule
        self._tally = tally
        self._settings = settings
        self._processing = processing
        self._worth_a_poll = worth_a_poll
        self._clock = clock

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """See `Consumer.rewind`. While no poll runs."""
        await self.progress.flush()
        await self.position.rewind(to, ago=ago, forget=forget)
        self.poller.forget()
        self.polls.begin_again()

    async def save_state(self, name: str, text: str | None) -> None:
        """Keep a text in the session's state; `None` takes it away. While no poll runs.

        Raises:
            StoreError: The store failed.
        """
        await self.progress.flush()
        await self.session.commit(cursor=None, records=[], state={name: text})

    # Processing

    @cached_property
    def progress(self) -> Progress:
        """What is settled and not yet committed."""
        interval = self._settings.flush_interval
        return Progress(self.session, self._tally, flush_interval=interval, clock=self._clock)

    @cached_property
    def processor(self) -> Processor:
        """Settles pages."""
        return Processor(
            self.progress,
            self._handlers[0],
            self._intake,
            self._trials,
            self._workers,
            self._tally,
            plain=self._processing.plain,
            batch_wait=self._processing.batch_wait,
            clock=self._clock,
        )

    @cached_property
    def letters(self) -> Letters:
        """What was given up on."""
        return Letters(self.session, self._feed, self.progress, self._trials)

    @cached_property
    def _workers(self) -> Workers:
        return Workers(
            self._trials,
            self.progress,
            self._handlers[1],
            concurrency=self._processing.concurrency,
            batch_size=self._processing.batch_size,
            hooks=self._hooks,
            clock=self._clock,
        )

    @cached_property
    def _trials(self) -> Trials:
        failures = Failures(self._processing.retry, self._processing.on_failure)
        handler, _ = self._handlers
        return Trials(handler, self.progress, failures, self._tally, hooks=self._hooks, clock=self._clock)

    @cached_property
    def _intake(self) -> Intake:
        return Intake(
            self.progress,
            dedupe_key=self._processing.dedupe_key,
            key=self._processing.key if self._processing.concurrency > 1 else None,
            fingerprint=self._processing.fingerprint,
        )

    @cached_property
    def _hooks(self) -> Hooks:
        return Hooks() if self._processing.hooks is None else SafeHooks(self._processing.hooks)

    @cached_property
    def _handlers(self) -> tuple[Handler, BatchHandler | None]:
        """Those of the user, within a transaction if the store has one, and announced to hooks if any are."""
        handler, batch, intake = self._processing.handler, self._processing.batch, self._intake
        if is_transactional(self.session):
            both = self.session, self.progress
            handler = in_transaction(handler, *both, lambda message: intake.records([message]))
            batch = batch and in_transaction(batch, *both, intake.records)
        if self._processing.hooks is not None:
            handler = announced(handler, self._hooks, lambda message: [message])
            batch = batch and announced(batch, self._hooks, lambda messages: messages)
        return handler, batch

    # Polling

    @cached_property
    def polls(self) -> Polls:
        """Polls, one at a time."""
        return Polls(
            self._schedule,
            self.session,
            self.processor,
            self.poller,
            tally=self._tally,
            hooks=self._hooks,
            overlaps=self._processing.overlaps,
            worth_a_poll=self._worth_a_poll,
            clock=self._clock,
        )

    @cached_property
    def poller(self) -> Poller:
        """Does one poll."""
        return Poller(
            self._fetches,
            self.processor,
            self.progress,
            self.position,
            self._behind,
            self.letters,
            self._gaps,
            self._schedule,
            self._tally,
            max_poll_time=self._settings.max_poll_time,
            prefetch=self._processing.prefetch,
            clock=self._clock,
        )

    @cached_property
    def position(self) -> Position:
        """Where the name begins, and where it goes on."""
        return Position(
            self.session,
            self._fetches,
            self.progress,
            self._behind,
            self._tally,
            self._hooks,
            start=self._processing.start,
            on_cursor_expired=self._processing.on_cursor_expired,
        )

    @cached_property
    def replay(self) -> Replay:
        """Gives a range of the feed to the handler again."""
        return Replay(self._fetches, self._intake, self._trials, self.progress, self._gaps)

    @cached_property
    def _gaps(self) -> Gaps:
        return Gaps(self.session, self.progress, self._tally, self._hooks)

    @cached_property
    def _behind(self) -> Behind:
        return Behind(
            self.session,
            self._tally,
            seconds=self._processing.overlap,
            cursors=self._processing.overlap_cursors,
            clock=self._clock,
            time_of_day=self.progress.time_of_day,
        )

    @cached_property
    def _fetches(self) -> Fetches:
        return Fetches(self._feed, self._schedule, self._clock)
