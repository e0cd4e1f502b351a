"""Import the public names of a package only when they are used.

Most programs use one feed, one listener and one store. Such a package lists each name twice: in an import for type
checkers and editors, and in a table for Python. The table is in the `else` of `if TYPE_CHECKING`, because a type
checker that sees `__getattr__` accepts every name.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__all__`, `__getattr__` and `__dir__` for a package and its modules' names."""
    origins = {name: module for module, names in modules.items() for name in names}
    this = sys.modules[package]

    def import_name(name: str) -> Any:
        if name in modules:  # `import push_to_poll_client` is enough to use `push_to_poll_client.feeds.paged`
            return import_module(f"{package}.{name}")
        if name not in origins:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=this)
        value = getattr(import_module(f"{package}.{origins[name]}"), name)
        setattr(this, name, value)  # later uses find it without a call
        return value

    return sorted(origins), import_name, lambda: [*{**vars(this), **origins}]
