"""The table of parsers is complete and correct.

Complete: each module that parses something is in a row, or is named below with the reason why its input is
trusted. Otherwise the test tells the author to add a row.
"""

import ast
import functools
import sys
from pathlib import Path

import pytest

import push_to_poll_client
from tests.fuzz.parsers import PARSERS

PACKAGE = Path(push_to_poll_client.__file__).parent

TAKES_APART = {
    *(
        "ParserCreate",
        "convert",
        "decode",
        "findall",
        "finditer",
        "float",
        "fromisoformat",
        "fromstring",
        "fullmatch",
    ),
    *(
        "int",
        "iterparse",
        "join_url",
        "loads",
        "match",
        "parse_qs",
        "parse_uri",
        "parsedate_to_datetime",
        "partition",
    ),
    *(
        "rpartition",
        "search",
        "split",
        "splitlines",
        "strptime",
        "unpack",
        "urljoin",
        "urlsplit",
        "URL",
        "Decoder",
    ),
    *("decompressobj", "b64decode", "rsplit", "from_bytes", "parse", "XML", "Parse"),
}
"""Names of functions and methods that parse a text."""

OUR_OWN = {
    "_http.transport": "addresses that the user gave, and the name of a module",
    "_log": "tracebacks that it has just made",
    "_failure_log": "names of modules",
    "_secrets": "headers and URLs that the user gave",
    "_processor": "digests that it has just made",
    "_types": "JSON that it has just made",
    "cli._dead_letters": "lines that are shown and not read, and what `as_json` has just made",
    "cli._main": "the exit code of a command",
    "cli._demo": "lines of its own processes",
    "cli._demo_consumer": "pushes of the demo's own server",
    "feeds._paged.declaration": "what the user declared",
    "_http.credentials": "Base64 that it has just made",
    "listeners._websocket_client": "the address that the user gave",
    "stores._sqlite.connection": "a list of words for SQLite",
    "stores._postgres.claims": "names, whose damaged rows have tests of their own",
    "stores._postgres.errors": "texts of the server for one log line",
    "stores._postgres.housekeeping": "notices, which another module reads",
    "stores._postgres.requests": "ids and texts that the store has just found",
    "stores._postgres.schema": "a number that the server gave as one",
    "stores.postgres": "arguments that the user gave",
    "testing": "what a test wrote",
}
"""Modules or packages that parse trusted input only, and the input."""


@functools.cache
def modules():
    """Return each module's name and path."""
    found = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}
    return [(".".join(part for part in parts if part != "__init__"), path) for path, parts in found.items()]


@functools.cache
def parsing_calls(path):
    nodes = list(ast.walk(ast.parse(path.read_text())))
    called = {getattr(node.func, "id", "") for node in nodes if isinstance(node, ast.Call)}
    return (called | {node.attr for node in nodes if isinstance(node, ast.Attribute)}) & TAKES_APART


def excused(module_name):
    return [name for name in OUR_OWN if module_name == name or module_name.startswith(f"{name}.")]


FUZZED = {module_name for row in PARSERS.values() for module_name in row.modules}


@pytest.mark.no_cover  # the test reads the package's source and does not run it
def test_each_module_that_parses_something_is_fuzzed_or_excused():
    missing = [
        f"add a row to tests/fuzz for {module_name}, with its {found}"
        for module_name, path in modules()
        if (found := parsing_calls(path)) and module_name not in FUZZED and not excused(module_name)
    ]
    assert not missing, "\n".join(missing)


def test_each_excuse_has_a_reason_and_covers_a_module_that_parses():
    for name, why in OUR_OWN.items():
        assert why
        assert name not in FUZZED, "it has a row"
        assert any(parsing_calls(path) for module_name, path in modules() if name in excused(module_name)), name


# Content of rows


@pytest.fixture(params=PARSERS.values(), ids=PARSERS)
def parser(request):
    return request.param


def test_the_examples_of_a_parser_run_through_all_its_modules(parser):
    files = {str(path): module_name for module_name, path in modules()}
    entered = set()

    def note(frame, event, _argument):
        if event == "call":
            entered.add(files.get(frame.f_code.co_filename))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for example in parser.examples:
            parser(example)
    finally:
        sys.setprofile(before)
    assert set(parser.modules) <= entered


def test_a_parser_reads_at_least_one_example_without_an_error(parser):
    assert any(is_read(parser, example) for example in parser.examples)


def is_read(parser, example):
    try:
        parser.read(example)
    except parser.errors:
        return parser.errors == (SystemExit,)  # the exit of `--help`
    return True


def test_a_parser_does_not_declare_exception_as_an_expected_error():
    assert not [parser for parser in PARSERS.values() if {Exception, BaseException} & {*parser.errors}]


def test_the_tokens_and_examples_of_a_parser_are_unique():
    for parser in PARSERS.values():
        for given in (parser.tokens, (*parser.examples, *parser.found)):
            assert len({*given}) == len(given), parser.name
