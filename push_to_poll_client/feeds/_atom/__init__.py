"""How Atom is read: from bytes to messages, nothing from elsewhere, in time and memory linear in the document."""
