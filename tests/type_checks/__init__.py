"""Code of users, checked by type checkers."""
