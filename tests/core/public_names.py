"""Write the list of all public names with their signatures: `python -m tests.core.public_names`.

The list is read from the source, so it is the same with every version of Python. Private names, names that are
inherited from outside the library, the tests of suites, and docstrings are left out.
"""

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

LIST = Path(__file__).parents[2] / "docs" / "public-names.txt"

HEAD = """\
The public names of push_to_poll_client, with their signatures. Generated, and compared by a test:

    python -m tests.core.public_names

A name stands where it is imported from; one that several modules export stands at the first of them.
"""

MODULES = [
    "push_to_poll_client",
    "push_to_poll_client.feeds.paged",
    "push_to_poll_client.listeners.handshakes",
    "push_to_poll_client.listeners.subscriptions",
    "push_to_poll_client.listeners.verifiers",
    "push_to_poll_client.listeners.webhook",
    "push_to_poll_client.durable_streams",
    "push_to_poll_client.stores.postgres",
    "push_to_poll_client.stores.reader",
    "push_to_poll_client.testing",
    "push_to_poll_client.testing.server",
]
"""The names of `feeds`, `listeners` and `stores` are exported by the package as well."""


ORIGINS = {"Cursor": "push_to_poll_client._types", "__version__": "push_to_poll_client._version"}
"""Modules of names whose objects do not tell their module."""


@functools.cache
def definitions(module: str) -> dict[str, ast.stmt]:
    """Return the top-level definitions of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update((target.id, node) for target in targets if isinstance(target, ast.Name))
    return found


def written(function: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> str:
    """Return the signature of a function, without `self` if it is a method."""
    arguments = ast.unparse(function.args)
    if bound:
        arguments = arguments.partition(",")[2].strip().removeprefix("/, ").removeprefix("/")
    returns = "" if function.returns is None else f" -> {ast.unparse(function.returns)}"
    return f"({arguments}){returns}"


def members(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield the public members of a class, each with its line."""
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, ast.unparse(node)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, ast.unparse(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            prefix = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            if node.name == "__init__":
                yield from attributes(node)
            elif decorators & {"property", "cached_property", "functools.cached_property"}:
                yield node.name, f"{node.name}{written(node, bound=True).replace('() ->', ':', 1)}"
            else:
                yield node.name, f"{prefix} {node.name}{written(node, bound='staticmethod' not in decorators)}"


def attributes(init: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, str]]:
    """Yield the annotated public attributes that a constructor sets."""
    for node in ast.walk(init):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
            yield node.target.attr, f"{node.target.attr}: {ast.unparse(node.annotation)}"


@functools.cache
def exported() -> set[type]:
    """Return the public classes; their members are listed only under them."""
    modules = [importlib.import_module(path) for path in MODULES]
    return {
        thing for module in modules for name in module.__all__ if isinstance(thing := getattr(module, name), type)
    }


def class_lines(kind: type) -> Iterator[str]:
    """Yield the head of a class and its public members, with those of private base classes."""
    own = [
        base
        for base in kind.__mro__
        if base.__module__.startswith("push_to_poll_client") and (base is kind or base not in exported())
    ]
    nodes = [
        node for base in own if isinstance(node := definitions(base.__module__).get(base.__name__), ast.ClassDef)
    ]
    inits = [
        node
        for each in nodes
        for node in each.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    bases = ", ".join(base.__name__ for base in kind.__bases__ if base is not object and base.__name__[0] != "_")
    yield f"class {kind.__name__}({bases})" if bases else f"class {kind.__name__}"
    if inits:
        yield f"    {kind.__name__}({written(inits[0], bound=True)[1:].partition(') -> None')[0]})"
    seen: set[str] = set()
    for node in nodes:
        for name, line in members(node.body):
            if not name.startswith(("_", "test_")) and name not in seen:
                seen.add(name)
                yield f"    {line}"


def public_names() -> Iterator[str]:
    """Yield the lines of the list."""
    yield from HEAD.splitlines()
    seen: set[int] = set()
    for path in MODULES:
        module = importlib.import_module(path)
        yield from ("", "", path, "=" * len(path))
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, type) or inspect.isfunction(thing):
                if id(thing) in seen:
                    continue
                seen.add(id(thing))
            yield ""
            if isinstance(thing, type) and thing.__name__ == name:
                yield from class_lines(thing)
                continue
            node = definitions(ORIGINS.get(name) or getattr(thing, "__module__", path)).get(name)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}{written(node, bound=False)}"
            else:
                yield name if node is None else ast.unparse(node)


if __name__ == "__main__":
    LIST.write_text("\n".join(public_names()) + "\n")
    sys.stdout.write(f"{LIST.name} is written\n")
