"""Fuzz one parser, guided by branch coverage: `python -m tests.fuzz.atheris_run NAME`.

libFuzzer makes inputs from the examples and tokens of the parser's row, and atheris reports the branches of the
library that each input takes. The first fault ends the run with exit code 77 and is saved in the directory for
artifacts: add it to the row's `found`.
"""

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FunctionType

PR_SET_PDEATHSIG = 1


def fork_to_reset_peak_memory():
    """Continue in a child. libFuzzer's limit uses ru_maxrss, which survives exec but not fork.

    On Linux a program starts with the peak memory of the process that started it.
    """
    if child := os.fork():
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    fork_to_reset_peak_memory()  # before the process has much memory to copy

import atheris  # noqa: E402  # after the fork

from tests.fuzz.parsers import PARSERS  # noqa: E402  # after the fork
from tests.fuzz.planted import PLANTED, read  # noqa: E402

FUZZED = {**PARSERS, PLANTED.name: PLANTED}

BENEATH = ("email._parseaddr", "httpx._urlparse")
"""Modules of other packages that parse for this one."""

LONGEST = 2048
"""Maximum length of an input, in bytes."""

SLOWEST = 10
"""Time limit for one input in seconds, a thousand times the usual time."""

MOST_MEMORY = 1024
"""Memory limit of the process, in MiB."""


def main():
    options = _options()
    logging.disable()
    parser = FUZZED[options.name]
    _watch({*BENEATH, read.__module__, *(f"push_to_poll_client.{name}" for name in parser.modules)})
    corpus = Path(options.directory, "corpus")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate((*parser.examples, *parser.found)):
        (corpus / f"example-{number}").write_bytes(example)
    dictionary = Path(options.directory, "tokens")
    dictionary.write_text("".join(f'"{_escaped(token)}"\n' for token in parser.tokens))
    atheris.Setup(
        [
            sys.argv[0],
            f"-seed={options.seed}",
            f"-runs={options.runs}",
            f"-max_len={LONGEST}",
            f"-timeout={SLOWEST}",
            f"-rss_limit_mb={MOST_MEMORY}",
            f"-dict={dictionary}",
            f"-artifact_prefix={options.directory}/fault-",
            "-print_final_stats=1",
            "-verbosity=1",
            str(corpus),
        ],
        parser,
    )
    atheris.Fuzz()


def _watch(modules):
    """Let atheris record the branches of these functions."""
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__module__ in modules:
            with suppress(TypeError, ValueError):  # atheris cannot instrument a few functions
                atheris.instrument_func(thing)


def _options():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(FUZZED), metavar="NAME", help="of the parser")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs to try")
    parser.add_argument("--seed", type=int, default=1, help="the same one makes the same inputs")
    parser.add_argument("--directory", required=True, help="for what was found, and what is tried first")
    return parser.parse_args()


def _escaped(token):
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main()
