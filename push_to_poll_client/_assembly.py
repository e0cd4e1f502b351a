"""How are the parts of one session put together?"""

from dataclasses import dataclass

from push_to_poll_client._polling.behind import Behind
from push_to_poll_client._polling.fetches import Fetches
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
from push_to_poll_client._types import Clock, Cursor

__all__ = ["Parts", "assemble"]


@dataclass(frozen=True, slots=True)
class Parts:
    """Those of them that a consumer speaks to."""

    session: Session
    polls: Polls
    progress: Progress
    poller: Poller
    position: Position
    letters: Letters
    replay: Replay

    async def rewind(self, to: Cursor | None, *, ago: float | None, forget: bool) -> None:
        """See `Consumer.rewind`. While no poll runs."""
        await self.progress.flush()
        await self.position.rewind(to, ago=ago, forget=forget)
        self.poller.forget()
        self.polls.begin_again()


def assemble(  # noqa: PLR0917  # each is of another type
    feed: Feed,
    session: Session,
    schedule: Schedule,
    tally: Tally,
    settings: Settings,
    processing: Processing,
    clock: Clock,
) -> Parts:
    """Make the parts that live as long as the session, each from those that it needs."""
    hooks = Hooks() if processing.hooks is None else SafeHooks(processing.hooks)
    progress = Progress(session, tally, flush_interval=settings.flush_interval, clock=clock)
    fetches = Fetches(feed, schedule, clock)
    intake = Intake(
        progress,
        dedupe_key=processing.dedupe_key,
        key=processing.key if processing.concurrency > 1 else None,
        fingerprint=processing.fingerprint,
    )
    handler, batch = _handlers(session, progress, intake, hooks, processing)
    failures = Failures(processing.retry, processing.on_failure)
    trials = Trials(handler, progress, failures, tally, hooks=hooks, clock=clock)
    workers = Workers(
        trials,
        progress,
        batch,
        concurrency=processing.concurrency,
        batch_size=processing.batch_size,
        hooks=hooks,
        clock=clock,
    )
    processor = Processor(
        progress,
        handler,
        intake,
        trials,
        workers,
        tally,
        plain=processing.plain,
        batch_wait=processing.batch_wait,
        clock=clock,
    )
    behind = Behind(
        session,
        tally,
        seconds=processing.overlap,
        cursors=processing.overlap_cursors,
        clock=clock,
        time_of_day=progress.time_of_day,
    )
    position = Position(
        session,
        fetches,
        progress,
        behind,
        tally,
        hooks,
        start=processing.start,
        on_cursor_expired=processing.on_cursor_expired,
    )
    letters = Letters(session, feed, progress, trials)
    poller = Poller(
        fetches,
        processor,
        progress,
        position,
        behind,
        letters,
        schedule,
        tally,
        max_poll_time=settings.max_poll_time,
        prefetch=processing.prefetch,
        clock=clock,
    )
    polls = Polls(
        schedule,
        session,
        processor,
        poller,
        tally=tally,
        hooks=hooks,
        overlaps=processing.overlaps,
        clock=clock,
    )
    return Parts(session, polls, progress, poller, position, letters, Replay(fetches, intake, trials, progress))


def _handlers(
    session: Session, progress: Progress, intake: Intake, hooks: Hooks, processing: Processing
) -> tuple[Handler, BatchHandler | None]:
    """Those of the user, within a transaction if the store has one, and announced to hooks if there are any."""
    handler, batch = processing.handler, processing.batch
    if is_transactional(session):
        handler = in_transaction(handler, session, progress, lambda message: intake.records([message]))
        batch = batch and in_transaction(batch, session, progress, intake.records)
    if processing.hooks is not None:
        handler = announced(handler, hooks, lambda message: [message])
        batch = batch and announced(batch, hooks, lambda messages: messages)
    return handler, batch
