"""The tests of push_to_poll_client.

Of what a module does: `core` (the modules that begin with `_`), `web` (`_http`), and `feeds`, `listeners`,
`stores`, `durable_streams`, `cli`, `testing` as in the package. Of what the whole does: `guarantees`, `chaos`,
`hostile`, `fuzz`, `interop`. Of the project itself: `docs`, `type_checks`, `mutants`. `vendors`, `node` and
`support` hold what these share.
"""
