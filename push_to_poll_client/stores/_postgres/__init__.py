"""Parts of the store in PostgreSQL."""
