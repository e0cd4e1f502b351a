"""Plant each bug in a copy of the package and check that its tests detect it: `make mutants`.

`python -m tests.mutants.plant [WORDS…]` runs only bugs with one of the words in their guarantee or name. The exit
code is 1 if a bug survives or cannot be planted any more.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.mutant import Mutant
from tests.mutants.mutants import MUTANTS

ROOT = Path(__file__).parents[2]

COPIED = ("push_to_poll_client", "tests", "examples", "pyproject.toml", "README.md", "docs")

TIMEOUT = 300.0
"""Time limit for the tests of a bug in seconds; tests that hang have detected it."""


class Copy:
    """A copy of the project, for one bug at a time."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        for name in COPIED:
            self._copy(name)

    def _copy(self, name: str) -> None:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("node_modules", "__pycache__")
            shutil.copytree(ROOT / name, self._root / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, self._root / name)

    def see(self, mutant: Mutant) -> bool:
        """Return True if its tests detect the bug."""
        with self._planted(mutant):
            return not self.passes(mutant.tests)

    @contextmanager
    def _planted(self, mutant: Mutant) -> Iterator[None]:
        file = self._root / "push_to_poll_client" / mutant.file
        before = file.read_text()
        file.write_text(planted(mutant, before))
        try:
            yield
        finally:
            file.write_text(before)

    def passes(self, tests: tuple[str, ...]) -> bool:
        """Return True if the tests pass without a bug."""
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-profile=planted"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        environment = {**os.environ, "PYTHONPATH": str(self._root), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(  # ours
                command, cwd=self._root, env=environment, capture_output=True, timeout=TIMEOUT, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        if done.returncode not in {0, 1}:
            raise SystemExit(f"{' '.join(tests)}: pytest cannot run\n{done.stdout.decode()[-3000:]}")
        return done.returncode == 0


def planted(mutant: Mutant, text: str) -> str:
    """Return the text with the bug in it.

    Raises:
        SystemExit: The original text does not occur exactly once.
    """
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.file} has {text.count(mutant.old)} times, not once, what {mutant.guarantee} "
            f"({mutant.name!r}) is to be planted in:\n{mutant.old}"
        )
    return text.replace(mutant.old, mutant.new)


def chosen(words: list[str]) -> list[Mutant]:
    return [one for one in MUTANTS if not words or any(word in f"{one.guarantee} {one.name}" for word in words)]


def run(mutants: list[Mutant]) -> list[tuple[Mutant, bool]]:
    """Yield each bug with True if it was detected; run as many at a time as there are processors."""
    copies: SimpleQueue[Copy] = SimpleQueue()

    def see(mutant: Mutant) -> bool:
        copy = copies.get()
        try:
            return copy.see(mutant)
        finally:
            copies.put(copy)

    with tempfile.TemporaryDirectory() as directory:
        workers = min(len(mutants), os.cpu_count() or 1)
        for number in range(workers):
            (place := Path(directory, str(number))).mkdir()
            copies.put(Copy(place))
        with ThreadPoolExecutor(workers) as pool:
            return list(zip(mutants, pool.map(see, mutants), strict=True))


def main() -> None:
    results = run(chosen(sys.argv[1:]))
    width = max(len(mutant.name) for mutant, _ in results)
    for mutant, seen in results:
        print(f"{mutant.guarantee:<4} {mutant.name:<{width}}  {'red' if seen else 'GREEN: not seen'}")  # noqa: T201
    survivors = [mutant for mutant, seen in results if not seen]
    print(f"{len(results)} bugs planted, {len(results) - len(survivors)} seen")  # noqa: T201
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
