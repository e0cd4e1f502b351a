"""Draw the layers of the package and their imports in docs/architecture.md: `python -m tests.docs.architecture`.

The boxes are the lines of the package's docstring. An arrow leads from a layer to a layer that it imports, unless
other arrows lead there too. The picture is Mermaid, which GitHub and most editors draw.
"""

import ast
import re
import sys
from pathlib import Path

import push_to_poll_client

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "push_to_poll_client"
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = re.compile(r"(?<=^```mermaid\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)

LAYER = re.compile(r"^    ((?:_?\w+/?(?:, )?)+?) {2,}(.*)$", re.MULTILINE)


def layers() -> list[tuple[list[str], str]]:
    """Return the modules of each layer, from the bottom up, with the docstring's words for it."""
    found = LAYER.findall(push_to_poll_client.__doc__ or "")
    return [(names.split(", "), words) for names, words in found]


def imports(name: str) -> set[str]:
    """Return the top-level modules and folders that a module or folder imports."""
    paths = PACKAGE.joinpath(name).rglob("*.py") if name.endswith("/") else [PACKAGE / f"{name}.py"]
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("push_to_poll_client"):
                module = [*(node.module or "").split("."), *(alias.name for alias in node.names)][1]
                found.add(module + "/" if PACKAGE.joinpath(module).is_dir() else module)
    return found


def edges() -> set[tuple[int, int]]:
    """Return each pair of a layer and a layer that it imports, without those that a longer way connects."""
    layer_of = {name: number for number, (names, _) in enumerate(layers()) for name in names}
    direct = {
        (number, layer_of[other])
        for name, number in layer_of.items()
        for other in imports(name)
        if layer_of.get(other, number) != number
    }
    reached = set(direct)
    for middle in range(len(layers())):  # a layer imports only layers below it, except from cli/ and testing/
        reached |= {(a, d) for a, b in reached for c, d in reached if b == c == middle}
    return {
        (a, b) for a, b in direct if not any((a, c) in direct and (c, b) in reached for c in range(len(layers())))
    }


def picture() -> str:
    """Return the picture, with a box for each layer and an arrow for each import that is not implied."""
    lines = ["flowchart BT"]
    for number, (names, words) in enumerate(layers()):
        lines.append(f'    l{number}["<b>{words}</b><br>{", ".join(names)}"]')
    lines += [f"    l{a} --> l{b}" for a, b in sorted(edges())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(PICTURE.sub(lambda _: picture(), PAGE.read_text()))
    sys.stdout.write(f"{PAGE.name} is written\n")
