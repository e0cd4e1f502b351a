"""The tests of push_to_poll_client.

By module: `core` (the modules that begin with `_`), `web` (`_http`), and `feeds`, `listeners`, `stores`,
`durable_streams`, `cli`, `testing` as in the package. Of the whole: `guarantees`, `chaos`, `hostile`, `fuzz`,
`interop`. Of the project: `docs`, `type_checks`, `mutants`. `vendors`, `node` and `support` are shared helpers.
"""
