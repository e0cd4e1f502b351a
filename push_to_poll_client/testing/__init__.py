"""For tests, yours and ours: fakes that misbehave, conformance suites, virtual time, a reference server."""
