"""Regular expressions take a bounded number of steps for each character of any text.

The tests cover all patterns of the package, with the methods that it calls. The texts repeat the characters of
the pattern.
"""

import ast
import importlib
import itertools
import random
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import push_to_poll_client
from tests.fuzz.backtracking import Steps, TooManySteps, alphabet
from tests.support.forms import form

PACKAGE = Path(push_to_poll_client.__file__).parent
WAYS = {"match", "fullmatch", "search", "findall", "finditer", "split", "sub"}

SIZE = form(40, 60)
"""Number of repetitions; the test also uses twice as many. Quadratic work is then four times as much."""

TWICE = 2.3

MOST_STEPS = form(20_000, 50_000)
"""Maximum number of steps on twice `SIZE` repetitions."""

FEW = 8
"""Steps for each character that need no second measurement."""

MOST_TEXTS = form(45, 1_500)
"""Number of texts for each pattern and method."""

MADE_ANEW = {"_secrets": "patterns from values that the user gave; `hidden secrets` has an example"}
"""Modules that make patterns at run time."""


KNOWN_TO_MATCH = {
    "_http.headers _MEMBER": "only within a match of `_MEMBERS`: each match begins at the end of the last one",
    "_http.headers _PARAMETERS": "only within a match of `_LINK`: each match begins at the end of the last one",
    "_atom.parser _START_TAG": "only in a well-formed document, from the start of a tag",
}
"""Patterns that backtrack, but only on texts that they never get."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]
        yield ".".join(parts), path


def called(module_name, path):
    """Yield each pattern of a module: its name, the pattern and the method that is called."""
    if "import re\n" not in (source := path.read_text()):
        return
    tree, module = ast.parse(source), importlib.import_module(f"push_to_poll_client.{module_name}")
    for name, value in vars(module).items():
        bound = getattr(value, "__self__", None)
        if isinstance(bound, re.Pattern) and f"{name} = " in source:
            yield name, bound, value.__name__
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"re.{way}" for way in WAYS}:
            yield ast.unparse(node.args[0]), re.compile(_constant(node.args[0], module)), node.func.attr
        elif isinstance(node, ast.Attribute) and node.attr in WAYS:
            names = [one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)]
            for name in names:
                if isinstance(value := getattr(module, name, None), re.Pattern):
                    yield name, value, node.attr


def _constant(node, module):
    return node.value if isinstance(node, ast.Constant) else getattr(module, node.id)


def patterns():
    found = {}
    for module_name, path in modules():
        for name, pattern, way in called(module_name, path):
            what = f"{module_name.removeprefix('feeds.')} {name}"
            if what not in KNOWN_TO_MATCH:
                found.setdefault((pattern, way), pytest.param(pattern, way, id=f"{what} {way}"))
    return list(found.values())


PATTERNS = patterns()


def is_linear(pattern, way):
    """Return the first text with more than linear work, or None."""
    return next((text for text in texts(pattern) if not _linear_on(pattern, way, text)), None)


def texts(pattern):
    """Yield texts: a start, a repetition, and an end at which the match may fail."""
    letters = [chr(code) for code in alphabet(pattern)[:9]] + ["a", "\0"]
    pumps = [
        "".join(pump) for length in (1, 2, 3) for pump in itertools.product(dict.fromkeys(letters), repeat=length)
    ]
    edges = ["", *letters]
    every = itertools.product(edges, pumps, edges)
    total = len(edges) ** 2 * len(pumps)
    if total <= MOST_TEXTS:
        yield from every
        return
    chance = random.Random(repr(pattern.pattern))  # noqa: S311
    for pump in pumps[: len(letters) + len(letters) ** 2][: MOST_TEXTS // 3]:
        yield "", pump, "\0"
        yield chance.choice(edges), pump, ""
    for _ in range(MOST_TEXTS // 3):
        yield chance.choice(edges), chance.choice(pumps), chance.choice(edges)


def _linear_on(pattern, way, text):
    once = _steps(pattern, way, text, SIZE)
    if once <= FEW * SIZE * len(text[1]):
        return True
    return once < MOST_STEPS and once * TWICE >= _steps(pattern, way, text, 2 * SIZE) < MOST_STEPS


def _steps(pattern, way, text, size):
    before, pump, behind = text
    whole = before + pump * size + behind
    steps = Steps(pattern, MOST_STEPS)
    with suppress(TooManySteps):
        _called(steps, way, whole.encode("latin-1") if isinstance(pattern.pattern, bytes) else whole)
    return steps.count


def _called(steps, way, text):
    if way in {"match", "fullmatch"}:
        return steps.match(text, whole=way == "fullmatch")
    return steps.search(text) if way == "search" else steps.all(text)


@pytest.fixture(autouse=True)
def _deep():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize(("pattern", "way"), PATTERNS)
def test_a_pattern_takes_a_bounded_number_of_steps_for_each_character(pattern, way):
    text = is_linear(pattern, way)
    assert text is None, (
        f"{_steps(pattern, way, text, SIZE)} steps on {text[0]!r} + {SIZE} * {text[1]!r} + {text[2]!r}"
    )


@pytest.mark.no_cover  # the test reads the package's source and does not run it
def test_every_compiled_pattern_of_the_package_is_tested():
    for module_name, path in modules():
        if "re.compile" not in (source := path.read_text()):
            continue
        compiled = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "re.compile"
        ]
        found = {pattern.pattern for _, pattern, _ in called(module_name, path)}
        if module_name not in MADE_ANEW:
            assert len({ast.unparse(node.args[0]) for node in compiled}) <= len(found), (
                f"{module_name} compiles more patterns"
            )


# Counting


@pytest.mark.parametrize(
    ("pattern", "way"),
    [
        (r"(a+)+$", "match"),
        (r"(?:a|a)*b", "match"),
        (r"a*a*b", "match"),
        (r"(?:a|aa)+$", "match"),
        (r'"(?:[^"\\]|\\.)*"', "search"),
        (r"\s*,", "search"),
        (r"[a-z]+=", "findall"),
        (r"(?:[^,]*,?)*x", "fullmatch"),
        (r"(.*)a(.*)a(.*)a!", "match"),
    ],
)
def test_a_backtracking_pattern_is_detected(pattern, way):
    assert is_linear(re.compile(pattern), way)


@pytest.mark.parametrize("pattern", [r"(?:a++)++$", r"(?>a|aa)*+b", r"[a-z]+=", r"a{1,3}b?"])
def test_a_linear_pattern_is_not_reported(pattern):
    assert not is_linear(re.compile(pattern), "match")


@pytest.mark.parametrize(("pattern", "way"), PATTERNS)
@settings(max_examples=form(8, 200))
@given(data=st.data())
def test_the_step_counter_finds_the_same_matches_as_re(pattern, way, data):
    letters = [chr(code) for code in alphabet(pattern)[:20]] + ["a", "Z", "0", " ", "\n", "\0", "\xe9"]
    text = data.draw(st.lists(st.sampled_from(letters), max_size=12).map("".join))
    text = text.encode("latin-1", "replace") if isinstance(pattern.pattern, bytes) else text
    steps = Steps(pattern)
    if way in {"match", "fullmatch"}:
        found = getattr(pattern, way)(text)
        assert steps.match(text, whole=way == "fullmatch") == (found and found.end())
    elif way == "search":
        found = pattern.search(text)
        assert steps.search(text) == (found and found.span())
    else:
        assert steps.all(text) == [found.span() for found in pattern.finditer(text)]
