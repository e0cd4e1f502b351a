"""The parts of `SQLiteStore`: one file, one owner, one writing connection."""
