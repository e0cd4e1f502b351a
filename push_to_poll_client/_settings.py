"""What a consumer may be told: wrong arguments are found here, at construction, and nowhere later."""

from dataclasses import dataclass

from push_to_poll_client._arguments import check_number
from push_to_poll_client._schedule import Schedule

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The numbers of a consumer, checked one by one and against each other.

    Raises:
        TypeError: A number is no number.
        ValueError: It is out of range, or two contradict each other.
    """

    fallback_interval: float | None
    degraded_interval: float | None
    rate: float | None
    burst: int
    wake_delay: float
    max_poll_time: float
    flush_interval: float
    shutdown_timeout: float

    def __post_init__(self) -> None:
        for name in ("fallback_interval", "degraded_interval", "rate"):
            check_number(name, getattr(self, name), above_zero=True, optional=True)
        for name in ("wake_delay", "flush_interval", "shutdown_timeout"):
            check_number(name, getattr(self, name))
        check_number("max_poll_time", self.max_poll_time, above_zero=True)
        if not isinstance(self.burst, int) or self.burst < 1:
            raise ValueError(f"burst must be a whole number of polls, at least 1, not {self.burst!r}")
        self._check_fallback()

    def _check_fallback(self) -> None:
        """The timer can only be as fast as the rate lets it, and must not be slower than a wake (G4)."""
        for name in ("fallback_interval", "degraded_interval"):
            interval = getattr(self, name)
            if interval is None:
                continue
            if self.rate is not None and interval * self.rate < 1:
                raise ValueError(f"{name}={interval} asks for more polls than rate={self.rate} a second allows")
            if interval < self.wake_delay:
                raise ValueError(f"{name}={interval} is shorter than wake_delay={self.wake_delay}")

    def check_listeners(self, count: int) -> None:
        """With listeners there must be a fallback: a push channel loses pushes without saying so (G4)."""
        if count and self.fallback_interval is None:
            raise ValueError(
                "fallback_interval=None together with listeners would lose every message whose push is lost; "
                "give the longest delay in seconds that is still acceptable"
            )

    def schedule(self) -> Schedule:
        """A new schedule with these numbers."""
        return Schedule(
            fallback_interval=self.fallback_interval,
            degraded_interval=self.degraded_interval,
            rate=self.rate,
            burst=self.burst,
            wake_delay=self.wake_delay,
        )
