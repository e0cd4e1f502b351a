"""HTTP, once, for feeds and listeners: requests, responses, credentials, origins and limits."""
