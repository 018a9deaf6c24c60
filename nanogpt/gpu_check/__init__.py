"""Check a GPU: tests, invariants and benchmarks, each in a process of its own, with verdicts and floors."""
