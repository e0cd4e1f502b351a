"""Parsers, fed with what nobody wrote on purpose."""
