"""Where was I: one file for each kind of store."""
