"""Who said so: one file for each kind of push channel."""
