"""All parsers of the package that read what others wrote, by their names."""

import rows_asking
import rows_atom
import rows_durable_streams
import rows_feeds
import rows_http
import rows_listeners
import rows_paged
import rows_state
import rows_subscriptions
import rows_verifiers
import rows_webhook

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
        rows_subscriptions,
        rows_verifiers,
        rows_webhook,
    )
    for row in rows.ROWS
}
