"""Servers, fakes and consumers that tests share."""
