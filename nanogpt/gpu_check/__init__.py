"""Check a GPU: tests, invariants and benchmarks, each in a fresh process, with verdicts and lower bounds."""
