"""The pages match the code: names, log lines, exit codes, figures, links, programs."""

import ast
import builtins
import contextlib
import functools
import inspect
import io
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import anyio
import msgspec
import pytest

import push_to_poll_client
from push_to_poll_client import (
    AtomFeed,
    Counters,
    DeadLetter,
    HTTPFeed,
    ListenerStatus,
    Mode,
    PagedFeed,
    SQLiteStore,
    Status,
    _channels,
    _failure_log,
    _json,
    _progress,
    _retry,
    _status,
    _types,
    _validation,
    durable_streams,
    testing,
)
from push_to_poll_client import _exceptions as exceptions
from push_to_poll_client._http import caching, client, headers, origins, redirects, response, transport
from push_to_poll_client.cli import _tail
from push_to_poll_client.cli._output import Exit
from push_to_poll_client.durable_streams import DurableStreamFeed, _framing, _signature
from push_to_poll_client.feeds import (
    _base,
    _decoding,
    _newest_first,
    _newest_first_cursor,
    _newest_first_walk,
    paged,
)
from push_to_poll_client.feeds._atom import constructs, entry, parser
from push_to_poll_client.feeds._paged import request
from push_to_poll_client.listeners import (
    _hints,
    handshakes,
    postgres,
    redis,
    sse,
    subscriptions,
    verifiers,
    webhook,
    websocket,
)
from push_to_poll_client.listeners._webhook import asgi, limits, routing, types
from push_to_poll_client.listeners.subscriptions import _callbacks, _websub
from push_to_poll_client.listeners.verifiers import _hmac, _standard_webhooks, _tokens
from push_to_poll_client.stores import _retention, reader
from push_to_poll_client.stores import postgres as postgres_store
from tests.docs.messages import is_log
from tests.support.command_line import typed

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "push_to_poll_client"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
README, GUARANTEES, GUARANTEE_TESTS = (
    (ROOT / name).read_text() for name in ("README.md", "docs/guarantees.md", "tests/guarantees/README.md")
)
COMMAND_LINE, DEPLOYMENT, LOG_LINES, OPERATIONS = (
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("command-line", "deployment", "log-lines", "operations")
)

HOLE = "\0"
"""Place of a value in a log line or error; `<name>` in the docs."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def section(text, title):
    """Return the text under a heading, up to the next heading of its level."""
    level = re.search(rf"^(#+) {re.escape(title)}", text, re.MULTILINE)
    assert level, f"there is no section {title!r}"
    return re.split(rf"^#{{1,{len(level[1])}}} ", text[level.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def table(text, head):
    """The cells of each row of the table whose head begins so."""
    rows = text.split(f"\n| {head} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def log_lines():
    """Level, line and meaning of each row of the page about log lines, which has a table for each topic."""
    parts = LOG_LINES.split("\n| level | line |")
    return [row for part in parts[1:] for row in table("\n| level | line |" + part, "level | line")]


def spans(text):
    return re.findall(r"`([^`\n]+)`", text)


# Tests that are named as evidence


def evidence(text):
    """Files and the tests that are named in them. An item may link several files that have the same test."""
    for item in re.findall(r"^- ((?:.|\n  )*)", text, re.MULTILINE):
        for path in re.findall(r"\]\(([^)]+)\)", item):
            for name in spans(item):
                yield (ROOT / "tests" / "guarantees" / path).resolve(), name


@functools.cache
def functions(path):
    """Name and decorators of each function and method of a file."""
    top = ast.parse(path.read_text()).body
    nodes = [*top, *(node for kind in top if isinstance(kind, ast.ClassDef) for node in kind.body)]
    return {
        node.name: [ast.unparse(decorator) for decorator in node.decorator_list]
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("number", range(1, 14))
def test_every_guarantee_is_explained_and_shown_by_tests_that_pass(number):
    assert section(GUARANTEES, f"G{number}: ").strip()
    named = list(evidence(section(GUARANTEE_TESTS, f"G{number}: ")))
    assert named
    for path, name in named:
        decorators = functions(path).get(name)
        assert decorators is not None, f"{path.name} has no {name}"
        assert not any(".xfail(" in decorator for decorator in decorators), f"{name} is expected to fail"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "guarantees").glob("test_g*.py")), ids=lambda path: path.stem
)
def test_each_file_of_the_guarantees_folder_is_linked_under_its_guarantee(path):
    number = int(path.stem[6:8])
    assert f"[{path.name}]({path.name})" in section(GUARANTEE_TESTS, f"G{number}: ")


@every_page
def test_no_page_for_users_names_a_test(page):
    assert re.findall(r"`test_g?\d*\w*_\w+_\w+_\w+`", page.read_text()) == []


def test_guarantee_titles_and_unfinished_marks_are_the_same_on_all_pages():
    titles = re.findall(r"^## (G\d+: .*)$", GUARANTEES, re.MULTILINE)
    assert re.findall(r"^## (G\d+: .*)$", GUARANTEE_TESTS, re.MULTILINE) == titles
    rows = re.findall(r"^\| \[(G\d+)\]\(#\S+\) \| (.*?) \|", GUARANTEES, re.MULTILINE)
    assert [": ".join(row) for row in rows] == titles
    unfinished = {number for number in range(1, 14) if "*Not yet" in section(GUARANTEES, f"G{number}: ")}
    in_readme = re.findall(r"^\| \[G(\d+)\] \| \*\*(.*?)[.,:]?\*\* (.*) \|$", README, re.MULTILINE)
    assert [f"G{number}: {name}" for number, name, _ in in_readme] == titles
    assert unfinished == {int(number) for number, _, text in in_readme if "*Not yet" in text}


def test_the_documented_limits_match_the_code():
    def default(thing, name):
        return inspect.signature(thing).parameters[name].default

    body = default(HTTPFeed, "max_body")
    stated = [
        f"{body >> 20} MiB",
        f"{HTTPFeed('https://shop.example')._max_messages:,}",
        f"{_decoding.MAX_UNREADABLE:,}",
        f"{_decoding.MAX_ID:,} characters",
        f"{_types.MAX_ID:,} characters",
        f"{_types.MAX_CURSOR:,} characters",
        f"{default(HTTPFeed, 'timeout'):g} s",
        f"{request.MAX_ERROR >> 10} KiB, in {client.ERROR_BODY_TIMEOUT:g} s",
        f"{response.MIN_BODY_PROGRESS:,} bytes in each {response.STALL_TIMEOUT:g} s",
        f"{client.MAX_REDIRECTS}",
        f"{redirects.MAX_REMEMBERED_REDIRECTS}, for an hour",
        f"{redirects.MAX_CONFIRMED_PATHS}",
        f"{headers.MAX_LINKS}",
        f"{caching.MAX_VALIDATOR:,} characters",
        f"{caching.MAX_FRESH / 3600:g} hour",
        f"{_base.MAX_ENDS}",
        f"{origins.MAX_SECRET:,} characters",
        f"{_newest_first.MAX_MESSAGES:,}, or {_newest_first_walk.MAX_BYTES >> 20} MiB of documents",
        f"{_newest_first_walk.MAX_DOCUMENTS:,} and {_newest_first_walk.MAX_ADDRESSES:,}",
        f"{_newest_first_walk.MAX_WALKS}",
        f"{_newest_first_walk.MAX_TRIES}",
        f"{_newest_first_cursor.MAX_TOP_DIGESTS:,} and {_newest_first_cursor.MAX_OLDER_DIGESTS}",
        f"{_framing.MAX_OFFSET:,} characters",
        f"{_framing.MAX_ECHO} characters",
        f"{entry.MAX_ELEMENTS:,} and {parser.MAX_DEPTH}",
        f"{parser.MAX_DOCUMENT_DEPTH:,}",
        f"{_json.MAX_DEPTH}",
        f"{parser.MAX_TAG >> 10:,} KiB",
        f"{parser.MAX_SCOPE:,} and {constructs.MAX_DATE} characters",
        f"{webhook.MAX_BODIES}",
        f"{limits.MAX_REPLAYS:,}",
        f"{_hmac.MAX_ITEMS} and {_standard_webhooks.MAX_ED25519}",
        f"{_standard_webhooks.MAX_HASHED:,}",
        f"{_tokens.MAX_ITEMS:,}",
        f"{types.MAX_QUERY:,} characters",
        f"{routing.MAX_NAMES:,}",
        f"{handshakes.MAX_ECHO:,} characters, for a hub {_callbacks.MAX_CHALLENGE:,}",
        f"{transport.CHUNKS_AT_ONCE} and {asgi.PIECES_AT_ONCE:,}",
        f"{sse.BYTES_AT_ONCE:,}",
        f"{_websub.MAX_TOPIC >> 20} MiB",
        f"{_signature.MAX_KEYS} and {_signature.MAX_SET >> 10} KiB",
        f"{_hints.MAX_TOPICS} and {_hints.MAX_VALUE_LENGTH:,}",
        f"{_channels.MAX_STATE:,} characters",
        f"{_channels.CAPACITY}",
        f"{_validation.MAX_TEXT} characters",
        f"1 of each error in {_failure_log.TRACEBACK_INTERVAL:g} s, {_failure_log.MAX_TRACEBACKS} in all",
        f"{_progress.MAX_PENDING:,}",
        "1",
        f"{_retry.MAX_DEAD_LETTERS:,}",
        f"{_retry.MAX_TRACEBACK:,} characters",
        f"{_progress.MAX_FAILING:,}",
        f"{_status.MAX_SHOWN_FAILING}",
        f"{_progress.MAX_ERROR} characters",
        f"{_retention.MAX_HISTORY}",
    ]
    rows = table(GUARANTEES, "what | limit")
    assert [limit for _, limit, where in rows if not WITH_ARGUMENTS.match(where)] == stated


WITH_ARGUMENTS = re.compile(r"`(\w+)\(((?:\w+=(?:, )?)+)\)`$")
"""Arguments that set a limit, as `SQLiteStore(max_records=, retention=)`."""

UNITS = {"KiB": 1 << 10, "days": 86_400}


def test_the_documented_limits_that_are_arguments_are_their_defaults():
    for what, limit, where in table(GUARANTEES, "what | limit"):
        if match := WITH_ARGUMENTS.match(where):
            kind = getattr(push_to_poll_client, match[1], None) or getattr(redis, match[1])
            defaults = [inspect.signature(kind).parameters[name].default for name in re.findall(r"\w+", match[2])]
            numbers = re.findall(r"(\d[\d,]*)(?: (\w+))?", limit)
            stated = [int(number.replace(",", "")) * UNITS.get(unit, 1) for number, unit in numbers]
            assert stated == defaults, f"{what}: {limit}"


SHARED_BY_FEEDS = ["auth", "headers", "timeout", "max_body", "client", "trusted_origins", "identity"]


@pytest.mark.parametrize("feed", [PagedFeed, HTTPFeed, AtomFeed, DurableStreamFeed])
def test_all_feeds_have_the_same_shared_arguments_last_and_in_the_same_order(feed):
    own, one = inspect.signature(feed).parameters, inspect.signature(HTTPFeed).parameters
    assert [name for name in own if name != "url_secrets"][-len(SHARED_BY_FEEDS) :] == SHARED_BY_FEEDS
    assert [own[name] for name in SHARED_BY_FEEDS] == [one[name] for name in SHARED_BY_FEEDS]


# Log lines and errors


def template(node):
    """Return the text of a string with placeholders; None if the node is not a string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.\d]*[sdfgr]", HOLE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(HOLE if isinstance(part, ast.FormattedValue) else part.value for part in node.values)
    return None


@functools.cache
def package_nodes():
    return [node for path in sorted(PACKAGE.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]


def calls():
    return [
        node for node in package_nodes() if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def logged():
    """Level and text of each line that the package logs above DEBUG; `LOG`: its level differs."""
    for call in filter(is_log, calls()):
        if call.func.attr == "debug":
            continue
        text = template(call.args[call.func.attr == "log"])
        assert text is not None, f"{ast.unparse(call)}: a log line begins with its text"
        yield call.func.attr.upper(), text


def as_documented(text):
    """`<name>` is a hole, and so is `<name>: <name>`, which a single hole may stand for."""
    return re.sub(rf"{HOLE}(: {HOLE})+", HOLE, re.sub(r"<[^<>]+>", HOLE, text))


def documented(level, text):
    for row_level, line, *_ in log_lines():
        shown = as_documented(line.strip("`"))
        same = text.startswith(shown.removesuffix("…")) if shown.endswith("…") else as_documented(text) == shown
        if same and level in {row_level, "LOG"}:
            yield line


@pytest.mark.no_cover  # it reads the package and runs none of it
def test_the_documented_log_lines_and_levels_match_the_code():
    explained = set()
    for level, text in logged():
        lines = list(documented(level, text))
        assert lines, f"{level} {text!r} is not explained"
        explained.update(lines)
    assert explained == {line for _, line, *_ in log_lines()}


def test_the_documented_logger_names_match_the_code():
    named = {name for name in spans(LOG_LINES) if name.startswith("push_to_poll_client")}
    names = {ast.unparse(call.args[0]).strip("'") for call in calls() if call.func.attr == "getLogger"}
    others = {"httpx", "push_response"}  # which are not written to
    assert names - {"__name__"} - others | {sse.__name__, websocket.__name__} == named


def test_the_documented_texts_of_push_channels_exist_in_the_package():
    texts = [text for node in package_nodes() if (text := template(node))]
    for cell, *_ in table(section(OPERATIONS, "Push channels"), "text"):
        (text,) = spans(cell)
        assert any(re.sub(r"<[^<>]+>", HOLE, text) in one for one in texts), f"{text!r} is not in the package"


SYMPTOMS = section(OPERATIONS, "Symptoms")


def quoted_after(mark):
    """Texts that the tables of symptoms quote after a mark such as `log:`; several are separated by commas."""
    for cell in re.findall(rf"{mark} ((?:`[^`]+`(?:, )?)+)", SYMPTOMS):
        yield from spans(cell)


def occurs(quoted, text):
    """Return True if the quoted text occurs in a line of the text; `…` stands for any text."""
    return re.search(".*".join(re.escape(part.strip()) for part in quoted.split("…")), text)


@pytest.mark.no_cover  # it reads pages and runs nothing
def test_the_log_lines_that_a_symptom_names_are_explained():
    lines = "\n".join(line for _, line, *_ in log_lines())
    named = list(quoted_after("log:"))
    assert len(named) > 10
    assert [text for text in named if not occurs(text, lines)] == []


@pytest.mark.no_cover  # it reads the package and runs none of it
def test_the_errors_that_refuse_a_state_file_exist_in_the_package():
    texts = "\n".join(text for node in package_nodes() if (text := template(node)))
    named = [text for row in table(SYMPTOMS, "error | cause") for text in spans(row[0])]
    assert len(named) > 10
    assert [text for text in named if not occurs(re.sub(r"<[^<>]+>", HOLE, text), texts)] == []


def test_the_index_by_symptom_leads_to_every_table_of_symptoms():
    index = [
        link for row in table(OPERATIONS, "symptom | section") for link in re.findall(r"\(#([^)]+)\)", row[1])
    ]
    assert anchors(SYMPTOMS) <= set(index) <= anchors(OPERATIONS)


def test_every_error_that_stops_a_consumer_is_explained():
    rows = {spans(row[0])[0] for row in table(OPERATIONS, "error | meaning")}
    kinds = {name: kind for name, kind in vars(exceptions).items() if isinstance(kind, type)}
    passing = {"PushToPollError", "FeedError", "FeedRefused", "PagesChanged", "Throttled", "SubscriptionGone"}
    of_a_message = {"DecodeError", "ContentChanged"}
    assert rows == kinds.keys() - passing - of_a_message - said_by_handlers()


def said_by_handlers():
    verdict = exceptions.HandlerDecision
    return {verdict.__name__, *(kind.__name__ for kind in verdict.__subclasses__())}


def test_every_message_verdict_is_explained():
    assert said_by_handlers() - {"HandlerDecision"} <= {
        name.partition("(")[0] for name in spans(section(OPERATIONS, "A message fails"))
    }


def test_every_policy_is_explained():
    rows = table(OPERATIONS, "`on_failure`")
    assert {json.loads(row[0].strip("`")): row[1].strip("`") for row in rows} == {
        policy: typed for typed, policy in _tail.POLICIES.items()
    }


def test_the_documented_members_of_an_exported_dead_letter_match_the_output(tmp_path, capsys):
    state, letter = str(tmp_path / "orders.db"), DeadLetter(dedupe_key="1", id="1", raw=b"\xff", error="e")

    async def bury():
        session = await SQLiteStore(state).claim("orders", feed="feed")
        texts = msgspec.structs.replace(letter, dedupe_key="2", raw=b"text")
        await session.commit(cursor=None, records=[], dead_letters=[letter, texts])
        await session.release()

    anyio.run(bury)
    assert typed("dead-letters", "--store", state, "export") == Exit.DONE
    shown = {name for line in capsys.readouterr().out.splitlines() for name in json.loads(line)}
    members = [name for row in table(OPERATIONS, "of a dead letter") for name in spans(row[0])]
    assert sorted(members) == sorted(shown)


# What an operator sees


def test_every_mode_is_explained():
    assert [row[0].strip("`") for row in table(OPERATIONS, "mode | meaning")] == [mode.value for mode in Mode]


def test_the_documented_status_fields_exist():
    there = {field.name for kind in (Status, ListenerStatus) for field in fields(kind)}
    there |= {f"counters.{field.name}" for field in fields(Counters)} | {"lag(now)"}
    rows = table(OPERATIONS, "of `status()`")
    assert {name for row in rows for name in spans(row[0])} <= there


def test_every_exit_code_is_explained():
    assert [int(row[0]) for row in table(COMMAND_LINE, "exit code")] == [code.value for code in Exit]


@pytest.fixture
def state(tmp_path):
    """The file of a consumer that is at rest."""

    async def settle():
        session = await SQLiteStore(tmp_path / "orders.db").claim("orders", feed="feed")
        await session.commit(cursor="c", records=[push_to_poll_client.Record("1")])
        await session.release()

    anyio.run(settle)
    return tmp_path / "orders.db"


def test_the_documented_members_of_the_json_status_match_the_output(state, capsys):
    assert typed("status", "--store", str(state), "--json") == Exit.DONE
    shown = json.loads(capsys.readouterr().out)
    members = [row[0].strip("`") for row in table(COMMAND_LINE, "member")]
    assert sorted(members) == sorted([*shown, *shown["consumers"][0]])


def test_the_documented_lines_of_the_status_command_match_the_output(state, capsys):
    assert typed("status", "--store", str(state)) == Exit.DONE
    shown = [line.split(" ")[0] for line in capsys.readouterr().out.splitlines()]
    (example,) = re.findall(r"^```text\n(.*?)^```$", COMMAND_LINE, re.MULTILINE | re.DOTALL)
    assert [line.split(" ")[0] for line in example.splitlines()] == shown


# What is to be run


def python(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_documented_backup_works_while_the_state_file_is_in_use(state, monkeypatch, capsys):
    monkeypatch.chdir(state.parent)

    async def back_up():
        session = await SQLiteStore(state).claim("orders", feed="feed")
        await session.commit(cursor="newest", records=[])
        run = functools.partial(subprocess.run, [sys.executable, "-c", python(OPERATIONS)[0]], check=True)
        await anyio.to_thread.run_sync(run)
        await session.release()

    anyio.run(back_up)
    assert typed("status", "--store", "orders-copy.db", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out)["consumers"][0]["cursor"] == "newest"


# Names and links


REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]


def targets(page):
    """Path in the checkout and anchor of each link, inline or as a reference, but for those to other sites."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for link in links:
        address, _, anchor = link.partition("#")
        if (own := re.fullmatch(rf"{re.escape(REPOSITORY)}/(?:blob|tree)/main/(.+)", address)) is not None:
            yield ROOT / own[1], anchor
        elif (
            workflow := re.fullmatch(rf"{re.escape(REPOSITORY)}/actions/workflows/([^/]+).*", address)
        ) is not None:
            yield ROOT / ".github" / "workflows" / workflow[1], anchor
        elif not address.startswith(("https:", "http:")):
            yield (page.parent / address).resolve() if address else page, anchor


@every_page
def test_the_target_of_every_link_exists(page):
    for target, anchor in targets(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target.read_text()), anchor


def test_the_links_of_the_readme_work_on_a_package_index():
    assert re.findall(r"\]\((?!https://)[^)]*\)|^\[[^\]]+\]: (?!https://)", README, re.MULTILINE) == []
    assert len(list(targets(ROOT / "README.md"))) >= 30


@every_page
def test_every_reference_of_a_link_is_defined(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    defined = set(re.findall(r"^\[([^\]]+)\]: ", text, re.MULTILINE))
    used = set(re.findall(r"\]\[([^\]]+)\]", text))
    used |= set(re.findall(r"(?<![\]\w!])\[([^\[\]]+)\](?![\[(:])", text)) if defined else set()
    assert used == defined


def anchors(text):
    """As GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@every_page
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)(?:`|$)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.fixture(scope="module")
def helps():
    """The help of each command."""
    commands = [[], *([one] for one in ("tail", "status", "dead-letters", "rewind", "rebind", "demo"))]
    actions = ("list", "show", "retry", "drop", "export")
    commands += [["dead-letters", "--store", "FILE", action] for action in actions]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert [typed(*command, "--help") for command in commands] == [Exit.DONE] * len(commands)
    return shown.getvalue()


OTHER_COMMANDS = r"^(\$ )?(stripe|uvicorn|python -m (?!push_to_poll_client ))\b.*"
"""Lines with commands that have options of their own."""


@every_page
def test_options_of_the_command_exist(page, helps):
    text = re.sub(OTHER_COMMANDS, "", page.read_text(), flags=re.MULTILINE)
    for option in re.findall(r"(?<=[` ])--[a-z][a-z-]+", text):
        assert option in helps, option


def calls_with_a_store(text):
    """Each call of a class with `store=`, as far as its closing bracket."""
    for opening in re.finditer(r"(?:\b[A-Z]\w*|super\(\)\.__init__)\(", text):
        depth = 0
        for place in range(opening.end() - 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[place], 0)
            if not depth:
                break
        call = text[opening.start() : place + 1]
        if "store=" in call:
            yield call


def shown_code():
    """Yield the texts with examples: pages, programs and docstrings."""
    for path in [*PAGES, *(ROOT / "examples").glob("*.py"), PACKAGE / "cli" / "_demo_consumer.py"]:
        if path.name != "CHANGELOG.md":
            yield path.name, path.read_text()
    for path in sorted(PACKAGE.rglob("*.py")):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield path.name, text


@pytest.mark.no_cover  # it reads the package and runs none of it
def test_each_consumer_of_an_example_has_a_name():
    """Without a name it begins anew when its feed's URL changes."""
    shown = [(name, call) for name, text in shown_code() for call in calls_with_a_store(text)]
    assert len(shown) >= 9
    assert [(name, call) for name, call in shown if "name=" not in call] == []


@every_page
def test_each_tail_of_an_example_that_keeps_state_has_a_name(page):
    for command in re.findall(r"push-to-poll tail (?:.*\\\n)*.*", page.read_text()):
        assert "--store orders.db" not in command or "--name orders" in command, command


@pytest.mark.parametrize("name", SHARED_BY_FEEDS)
@pytest.mark.parametrize("feed", [PagedFeed, AtomFeed, DurableStreamFeed])
def test_shared_arguments_are_explained_by_the_same_sentences_for_all_feeds(feed, name):
    def explained(kind):
        text = inspect.cleandoc(kind.__doc__)  # Python 3.13 takes the indentation away by itself
        return re.search(rf"\n    {name}: (.*?)(?:\n\w|\n    \w|\n\n)", text, re.DOTALL)[1]

    assert explained(feed) == explained(HTTPFeed)


PARTS = (
    testing,
    durable_streams,
    paged,
    verifiers,
    handshakes,
    subscriptions,
    postgres,
    redis,
    postgres_store,
    reader,
)
"""Modules that have public names of their own."""


@every_page
def test_names_of_the_package_exist(page):
    sqlalchemy = {"AsyncEngine", "AsyncSession"}
    psycopg = {"AsyncConnection", "AsyncConnectionPool"}
    foreign = {*sqlalchemy, *psycopg, "ProcessedMessage", "RateLimit"}
    parts = {name for module in PARTS for name in module.__all__}
    known = {*push_to_poll_client.__all__, *parts, *foreign, *dir(builtins)}
    for name in re.findall(r"`([A-Z][a-z]+[A-Z]\w+|[A-Z]{2,}[A-Z][a-z]\w+)(?:\(|`)", page.read_text()):
        assert name in known, name


def test_the_source_distribution_includes_every_page():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = set(build["targets"]["sdist"]["include"])
    for page in PAGES:
        path = page.relative_to(ROOT)
        assert {str(path), path.parts[0]} & included, path
