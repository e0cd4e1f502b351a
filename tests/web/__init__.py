"""Tests of HTTP: requests, responses, credentials, origins."""
