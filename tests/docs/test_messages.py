"""All error texts and log lines stand in one generated file, and keep the rules for texts that can be checked."""

import ast
import re

import pytest

from tests.docs.messages import LIST, PACKAGE, Texts, messages

TEXTS = [line.strip() for line in messages() if line.startswith("    ")]


def texts_of(source):
    found = Texts()
    found.visit(ast.parse(source))
    return [text for _, text in sorted(found.found.items())]


def test_the_list_of_error_texts_and_log_lines_is_up_to_date():
    """Read the change of the list as a whole: problem, value seen, fix."""
    assert LIST.read_text().splitlines() == [*messages()], (
        "run python -m tests.docs.messages, and read what changed"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('raise ValueError(f"x must be positive, got {x!r}")', [("ValueError", "x must be positive, got <x>")]),
        ('raise FeedError("a" if b else f"{c.d()}")', [("FeedError", "a"), ("FeedError", "<d>")]),
        ('raise StoreError(f"{quoted(self.path)} is " + "full")', [("StoreError", "<path> is full")]),
        ('_log.info("started at %s: %.1f s", place, self.delay)', [("INFO", "started at <place>: <delay> s")]),
        ('self._log.log(level, "%s: %s", *names)', [("LOG", "<...>: <...>")]),
        ('def f():\n    """Not this one."""\n    return "but this one is"', [("text", "but this one is")]),
        ('add("--to", help="where to go on")', []),
        ('run("SELECT key FROM records WHERE name")', []),
        ('run("(type IN (1, 2) OR rootpage = 0)", "%(asctime)s at level %(levelname)s")', []),
        (
            'raise TypeError(f"x must be a str, got {type(x).__name__}")',
            [("TypeError", "x must be a str, got <class>")],
        ),
        ('raise ValueError(f"{where.redact(url)}: {error.strerror}")', [("ValueError", "<url>: <error>")]),
    ],
)
def test_the_text_of_a_statement_is_found(source, expected):
    assert texts_of(source) == expected


def test_every_module_that_raises_an_error_with_a_text_is_in_the_list():
    listed = set(re.findall(r"^(\S+\.py)$", LIST.read_text(), re.MULTILINE))
    raising = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r'raise \w+Error\(f?"', path.read_text())
    }
    assert raising
    assert raising <= listed
