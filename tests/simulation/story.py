"""Report a life that failed."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from tests.simulation.journal import Event
from tests.simulation.life import Life

__all__ = ["story"]

LAST_LINES = 40


def story(life: Life) -> str:
    """Return the plan, the last events, and the violation."""
    events = life.journal.events
    end = next((event.number for event in events if event.kind == "BROKEN"), len(events) - 1) + 1
    lines = list(_lines(events[:end]))
    shown = lines[-LAST_LINES:]
    return "\n".join([
        f"life {life.plan.seed} on {life.backend}: {life.oracle.violation}",
        f"  {life.plan}",
        f"  the last {len(shown)} of {len(lines)} lines:",
        *(f"    {line}" for line in shown),
        f"  again: python -m tests.simulation {life.plan.seed} 1 {life.backend}",
    ])  # fmt: skip


def _lines(events: Iterable[Event]) -> Iterator[str]:
    """Yield a line for each event. Successful calls of the handler share one."""
    told = (event for event in events if event.kind != "info")
    for well, group in groupby(told, key=lambda event: event.kind in {"handle", "handled"}):
        run = list(group)
        done = [name for event in run if event.kind == "handled" for name in event.facts["ids"]]
        if well and len(run) > 2:
            open_calls = {event.facts["call"]: event for event in run if event.kind == "handle"}
            for event in run:
                if event.kind == "handled":
                    open_calls.pop(event.facts["call"], None)
            if done:
                span = f"{done[0]}..{done[-1]} ({len(done)})"
                yield f"{run[0].at:10.3f} [{run[0].client}] handles {span} until {run[-1].at:.3f}"
            yield from map(str, open_calls.values())
        else:
            yield from map(str, run)
