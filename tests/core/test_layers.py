"""Modules import only from lower layers, without cycles."""

import ast
import graphlib
import re
import sys
from pathlib import Path

import pytest

import push_to_poll_client

PACKAGE = Path(push_to_poll_client.__file__).parent

LAYERS = re.findall(r"\b_\w+", push_to_poll_client.__doc__)
"""Modules of the core in the order of the package's list. Each may import earlier ones but no adapter."""

SHARED = {
    "_version",
    "_lazy_exports",
    "_event_loop",
    "_secrets",
    "_validation",
    "_json",
    "_log",
    "_exceptions",
    "_types",
    "_protocols",
    "_http",
}
"""Modules that adapters may import as well. Adapters must not import each other."""

ADAPTERS = ("feeds", "listeners", "stores")

ABOVE_ADAPTERS = {"durable_streams": {"feeds", "listeners"}}
"""Packages that may import the adapters listed with them."""

PACKAGES = {"_http"}
"""Layers that are packages."""

FREE = {"cli", "testing", "__main__"}
"""Modules that may import anything, and that nothing may import."""


def layers():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def may_import(layer):
    """Return the layers that the modules of a layer may import."""
    if layer in LAYERS:
        return {*LAYERS[: LAYERS.index(layer)], *({layer} & PACKAGES)}
    if layer in ADAPTERS:
        return SHARED | {layer}
    if layer in ABOVE_ADAPTERS:
        return SHARED | ABOVE_ADAPTERS[layer] | {layer}
    return {*LAYERS, *ADAPTERS, *ABOVE_ADAPTERS}


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "push_to_poll_client" and len(parts) > 1:
                yield parts[1]


@pytest.mark.no_cover  # only reads the source
def test_modules_import_only_allowed_modules():
    wrong = [
        f"{path.relative_to(PACKAGE)} ({layer}) must not import {other}"
        for layer, path in layers()
        if layer not in FREE
        for other in imported_layers(path)
        if other not in may_import(layer)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_is_listed_in_the_import_order():
    found = {layer for layer, _ in layers()} - {"__init__"}
    assert found == {*LAYERS, *ADAPTERS, *ABOVE_ADAPTERS, *FREE}


def imported_modules(path):
    """Yield the modules of the package that are imported together with a module."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("push_to_poll_client"):
            for alias in node.names:
                module = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                yield module_of(module if is_module(module) else module.parent)


def is_module(path):
    return path.is_dir() or path.with_suffix(".py").exists()


def module_of(path):
    return path.joinpath("__init__.py") if path.is_dir() else path.with_suffix(".py")


@pytest.mark.no_cover  # only reads the source
def test_modules_import_each_other_in_no_circle():
    modules = {path: set(imported_modules(path)) - {path} for path in PACKAGE.rglob("*.py")}
    assert len([*graphlib.TopologicalSorter(modules).static_order()]) == len(modules)


def test_no_folder_of_tests_hides_a_module_of_the_standard_library():
    folders = {path.parent.name for path in Path(__file__).parents[1].glob("*/__init__.py")}
    assert "core" in folders
    assert not folders & sys.stdlib_module_names
