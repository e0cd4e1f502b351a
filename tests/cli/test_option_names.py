"""Options of the command line have the names and defaults of the library's arguments."""

import inspect

import pytest

from push_to_poll_client import Consumer, DeadLetters, HTTPFeed, SQLiteStore
from push_to_poll_client.cli import _dead_letters, _state, _tail
from push_to_poll_client.cli._parser import Commands, Parser

OWN = {
    "tail": "push webhook webhook_verify webhook_secret_env store schema once token_env exec exec_timeout "
    "exec_attempts",
    "rewind": "store schema name list",
    "rebind": "store schema",
    "retry": "all",
    "drop": "",
}
"""Options for objects, functions or calls of the library: listeners, a store, a handler, its `retry=`, a token,
`catch_up()`, `retry()` without keys."""

STANDS_FOR = {
    "tail": [Consumer, HTTPFeed],
    "rewind": [Consumer.rewind],
    "rebind": [SQLiteStore.rebind],
    "retry": [DeadLetters.retry],
    "drop": [DeadLetters.drop],
}


def options(command):
    commands = Commands(Parser(prog="push-to-poll", description=""))
    for module in (_tail, _state, _dead_letters):
        module.add_to(commands)
    parsers = commands._parsers.choices
    if command not in parsers:
        (parsers,) = [action.choices for action in parsers["dead-letters"]._actions if action.choices]
    shared = {"help", "verbose", *({"store", "schema", "name"} if command in {"retry", "drop"} else ())}
    return {action.dest: action for action in parsers[command]._actions if action.dest not in shared}


@pytest.mark.parametrize("command", STANDS_FOR)
def test_an_option_has_the_name_and_the_default_of_the_argument_that_it_stands_for(command):
    arguments = {}
    for function in STANDS_FOR[command]:
        arguments |= inspect.signature(function).parameters
    found = options(command)
    assert {*OWN[command].split()} <= found.keys()
    for name in found.keys() - OWN[command].split():
        assert name in arguments
        assert found[name].option_strings in ([], [f"--{name.replace('_', '-')}"])
        default = arguments[name].default
        assert found[name].default == (None if default is inspect.Parameter.empty else default)
