"""Arguments of a rebind, the same for every store."""

import msgspec

from push_to_poll_client._validation import quoted


class Rebind(msgspec.Struct, frozen=True):
    """Bind a consumer name to another feed, or rename it.

    Args:
        name: The name.
        feed: The identity of the feed to bind it to; `None` leaves it bound as it is.
        new_name: The name from then on; `None` leaves it, or follows `feed` if it is the feed's identity.
        replace: Whether a name that exists already is dropped for it.

    Raises:
        TypeError: `feed` or `new_name` is not a `str`.
        ValueError: One of them is empty, or there is neither.
    """

    name: str
    feed: str | None
    new_name: str | None
    replace: bool

    def __post_init__(self) -> None:
        if self.feed is None and self.new_name is None:
            raise ValueError("rebind needs feed= or new_name=")
        for argument, value in (("feed", self.feed), ("new_name", self.new_name)):
            if value is not None and (not isinstance(value, str) or not value):
                kind = ValueError if isinstance(value, str) else TypeError
                raise kind(f"{argument} must be a str of at least 1 character, not {quoted(value)}")

    def target(self, bound_to: str) -> str:
        """Return what the name is called then.

        Args:
            bound_to: The feed that it is bound to now.
        """
        if self.new_name is not None:
            return self.new_name
        # The name of a consumer without `name=` is its feed's identity.
        return self.feed if self.feed is not None and self.name == bound_to else self.name

    def unknown_name(self, where: str) -> ValueError:
        """Build the error for a name that the store does not have."""
        return ValueError(
            f"{where} has no name {quoted(self.name)} to rebind; push-to-poll status shows its names"
        )

    def check_free(self, where: str, target: str) -> None:
        """Raise for a target that exists, unless it is to be replaced.

        Raises:
            ValueError: It exists.
        """
        if not self.replace:
            raise ValueError(
                f"{where}: the name {quoted(target)} exists already; choose another one, or drop all that it has "
                "with replace=True"
            )
