"""Parsers with random and hostile input."""
