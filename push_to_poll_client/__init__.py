"""The push-to-poll consumer loop: a push says when to ask, the poll says what, each message is processed once."""
