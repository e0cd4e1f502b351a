"""How any server is asked to hold its answer until there is something new, beside what it calls that itself."""

__all__ = ["prefer_wait"]


def prefer_wait(wait: float) -> dict[str, str]:
    """The header `Prefer: wait=…` (RFC 7240 §4.3), which a server may ignore.

    Args:
        wait: Seconds; 0: answer at once.

    Returns:
        Whole seconds, as the standard has them; no header for 0.
    """
    return {"prefer": f"wait={max(1, round(wait))}"} if wait > 0 else {}
