"""All parsers of the package that read what others wrote, by their names."""

import rows_http

__all__ = ["PARSERS"]

PARSERS = {row.name: row for rows in (rows_http,) for row in rows.ROWS}
