"""Read Atom documents, from bytes to messages, in time and memory linear in the document, and without requests."""
