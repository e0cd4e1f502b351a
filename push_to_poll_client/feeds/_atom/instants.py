"""WHEN? Dates by RFC 4287 §3.3 and RFC 3339, and as feeds write them all the same."""

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

from push_to_poll_client._http.headers import http_date
from push_to_poll_client._validation import quoted

__all__ = ["Instant"]

MAX_DATE = 64
"""Characters. A date with nanoseconds and an offset has 35."""

_DATE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?(?:[Zz]|([+-])([01]\d|2[0-3]):?([0-5]\d)?)?)?",
    re.ASCII,
)
_LEAP = 60


class Instant(NamedTuple):
    """An instant, to the last digit that its feed wrote.

    Attributes:
        text: By RFC 3339 and in UTC, without trailing zeros: the same for all spellings of the instant.
        time: The same, in the zone as written, to the microsecond; a leap second is the one before it.
    """

    text: str
    time: datetime

    @classmethod
    def read(cls, text: str) -> "Instant":
        """Read a date.

        Beyond RFC 3339 there may be space around it; a time of day, seconds or a zone (UTC) may be missing, the
        colon of the zone too; and the date may be one of mail (RFC 5322), as RSS has it.

        Raises:
            ValueError: It is none.
        """
        text = text.strip()
        found = _DATE.fullmatch(text) if len(text) <= MAX_DATE else None
        if found is not None:
            return cls._of(found)
        seconds = http_date({"date": text}, "date") if len(text) <= MAX_DATE else None
        if seconds is None:
            raise ValueError(f"{quoted(text, 40)} is no date by RFC 3339")
        time = datetime.fromtimestamp(seconds, UTC)
        return cls(_written(time, time.second, ""), time)

    @classmethod
    def _of(cls, found: re.Match[str]) -> "Instant":
        year, month, day, hour, minute, second = (int(found[group] or 0) for group in range(1, 7))
        if second > _LEAP:
            raise ValueError(f"{quoted(found[0])} has no second of a minute")
        fraction = (found[7] or "").rstrip("0")
        clock = (hour, minute, min(second, _LEAP - 1), int(fraction[:6].ljust(6, "0")))
        try:
            time = datetime(year, month, day, *clock, tzinfo=_zone(found))
        except ValueError as error:
            raise ValueError(f"{quoted(found[0])} is no date: {error}") from None
        return cls(_written(time, second, fraction), time)

    @property
    def order(self) -> str:
        """What sorts as instants do."""
        return self.text.removesuffix("Z")


def _zone(found: re.Match[str]) -> timezone:
    if not found[8]:
        return UTC
    offset = timedelta(hours=int(found[9]), minutes=int(found[10] or 0))
    return timezone(-offset if found[8] == "-" else offset)


def _written(time: datetime, second: int, fraction: str) -> str:
    minute = _in_utc(time).isoformat(timespec="minutes")[:16]
    return f"{minute}:{second:02}{'.' if fraction else ''}{fraction}Z"


def _in_utc(time: datetime) -> datetime:
    """At either end of the calendar, where a default of some languages is, as if it were in UTC."""
    try:
        return time.astimezone(UTC)
    except OverflowError:
        return time
