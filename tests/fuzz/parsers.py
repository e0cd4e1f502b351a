"""All parsers of untrusted input in the package, by name."""

from tests.fuzz import (
    rows_asking,
    rows_atom,
    rows_durable_streams,
    rows_feeds,
    rows_http,
    rows_listeners,
    rows_paged,
    rows_postgres,
    rows_state,
    rows_subscriptions,
    rows_verifiers,
    rows_webhook,
)

__all__ = ["PARSERS"]

PARSERS = {
    row.name: row
    for rows in (
        rows_http,
        rows_atom,
        rows_feeds,
        rows_paged,
        rows_listeners,
        rows_asking,
        rows_durable_streams,
        rows_state,
        rows_postgres,
        rows_subscriptions,
        rows_verifiers,
        rows_webhook,
    )
    for row in rows.ROWS
}
