"""Write the list of all error texts and log lines: `python -m tests.docs.messages`.

The list is read from the source, so that all texts can be reviewed together. A text is a string with at least
three words, or the first argument of an exception or of a log call, that is not a docstring, SQL, a
format, a pattern or an argument of `argparse`. `<name>` is a value that is filled in at run time.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "push_to_poll_client"
LIST = ROOT / "docs" / "messages.txt"

HEAD = """\
All error texts and log lines of push_to_poll_client, by module. Generated, and compared by a test:

    python -m tests.docs.messages

A line begins with the exception's class or the log level; "text" is a part of a message, or an answer to a
request. <name> is filled in at run time, <...> by a longer expression. docs/log-lines.md explains each log line.
"""

LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
EXCEPTION = re.compile(
    r"^[A-Z]\w*(Error|Exception|Exit|Unavailable|Busy|Mismatch|Lost|Refused|Gone|Changed|Expired|Throttled|Failure)$"
)
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|DROP|PRAGMA|WITH|BEGIN|ALTER|REPLACE|LISTEN|REINDEX)\b")
CODE = re.compile(r"%\(\w+\)s|\\[dsw_]|\(\?:|;q=0|</|<SELECT>|EXECUTABLES|_list |rootpage|, \w+_\w+, ")
"""Formats, patterns, SQL fragments, markup: texts that no user reads."""
THREE_WORDS = re.compile(r"[A-Za-z,;:)'\"<>]+ [^ ]*[A-Za-z]{2,}[^ ]* [^ ]*[A-Za-z<]{2,}")
UNREAD_KEYWORDS = {"help", "description", "epilog", "usage", "metavar"}
"""Arguments of `argparse`; `--help` shows them."""


def is_log(call: ast.Call) -> bool:
    """Return True for a call that writes a log line."""
    function = call.func
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and re.search(r"\b_?log(ger)?$", ast.unparse(function.value)) is not None
    )


def value_name(node: ast.expr) -> str:  # noqa: PLR0911  # a table: one return for each case
    """Return a short name for a value that is filled in, without angle brackets."""
    match node:
        case ast.Attribute(value=ast.Call(func=ast.Name(id="type")), attr="__name__"):
            return "class"
        case ast.Attribute(attr="strerror"):
            return "error"
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Await(value=value) | ast.Subscript(value=value):
            return value_name(value)
        case ast.Call(func=ast.Name(id="len")):
            return "number"
        case ast.Call(func=ast.Name(id=str(function)), args=[value, *_]) if function[0].islower():
            return value_name(value)
        case ast.Call(func=ast.Attribute(attr="join")):
            return "list"
        case ast.Call(func=ast.Attribute(attr="redact" | "mask"), args=[value, *_]):
            return value_name(value)
        case ast.Call(func=ast.Attribute(attr=name)):
            return name.strip("_")
        case _:
            return "..."


def text_of(node: ast.expr) -> str | None:
    """Return the text of a string with `<name>` for each value in it. None if the node is not a string."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                part.value if isinstance(part, ast.Constant) else f"<{value_name(part.value)}>"
                for part in parts
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = text_of(left), text_of(right)
            return None if texts == (None, None) else "".join(text or "<...>" for text in texts)
        case _:
            return None


def log_text(call: ast.Call) -> str | None:
    """Return the text of a log call with a name for each of its arguments."""
    first, *values = call.args[call.func.attr == "log" :]  # type: ignore[attr-defined]
    starred = any(isinstance(value, ast.Starred) for value in values)  # which fills in any number of values
    names = iter([] if starred else map(value_name, values))
    text = text_of(first)
    return text and re.sub(r"%[-.\d]*[sdfgr]", lambda _: f"<{next(names, '...')}>", text)


class Texts(ast.NodeVisitor):
    """Collects the texts of one module, each with the line and its label."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int], tuple[str, str]] = {}

    def add(self, node: ast.expr, label: str, text: str | None) -> None:
        """Add a text, unless it was found as a part of a longer one."""
        if (
            text
            and (label != "text" or (THREE_WORDS.search(text) and not CODE.search(text)))
            and not SQL.match(text)
        ):
            self.found.setdefault((node.lineno, node.col_offset), (label, " ".join(text.split())))

    def visit_body(self, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Skip the docstrings: strings that are a statement."""
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                self.visit(child)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = visit_body  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:  # the name that NodeVisitor looks for
        """Label the texts of exceptions and log calls."""
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        if is_log(node) and (text := log_text(node)):
            self.add(node.args[last == "log"], "LOG" if last == "log" else last.upper(), text)
        elif EXCEPTION.match(last):
            for argument in node.args[:1]:
                self.label(argument, last)
        for child in [node.func, *node.args]:
            if not (is_log(node) and text_of(child) is not None):
                self.visit(child)
        for keyword in node.keywords:
            if keyword.arg not in UNREAD_KEYWORDS:
                self.visit(keyword.value)

    def label(self, node: ast.expr, label: str) -> None:
        """Label the texts among which an exception chooses."""
        if isinstance(node, ast.IfExp):
            self.label(node.body, label)
            self.label(node.orelse, label)
        else:
            self.add(node, label, text_of(node))

    def visit_text(self, node: ast.expr) -> None:
        """Add any other string with three words."""
        self.add(node, "text", text_of(node))
        for child in ast.walk(node):  # a string within a string: `{'one' if x else 'two'}`
            if isinstance(child, ast.FormattedValue):
                self.visit(child.value)

    visit_Constant = visit_JoinedStr = visit_text  # noqa: N815

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Add a sum of strings as one text."""
        if text_of(node) is None:
            self.generic_visit(node)
        else:
            self.visit_text(node)


def messages() -> Iterator[str]:
    """Yield the lines of the list."""
    yield from HEAD.splitlines()
    for path in sorted(PACKAGE.rglob("*.py")):
        texts = Texts()
        texts.visit(ast.parse(path.read_text()))
        if texts.found:
            yield from ("", str(path.relative_to(PACKAGE)))
            for label, text in dict.fromkeys(text for _, text in sorted(texts.found.items())):
                yield f"    {label}: {text}"


if __name__ == "__main__":
    LIST.write_text("\n".join(messages()) + "\n")
    sys.stdout.write(f"{LIST.name} is written\n")
