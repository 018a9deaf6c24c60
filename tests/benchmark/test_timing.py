"""No test depends on how fast the machine is: a busy one is slower, not wrong."""

import ast
from pathlib import Path

TESTS = sorted(Path(__file__).parent.glob("**/*.py"))
CLOCKS = {"monotonic", "perf_counter", "time"}
HANGS = {"deadline", "limit"}
"""Names of the moments, minutes away, after which a test is sure to hang."""


def test_nothing_is_asserted_about_elapsed_time() -> None:
    for path, node in ((test, node) for test in TESTS for node in ast.walk(ast.parse(test.read_text()))):
        if isinstance(node, ast.Assert):
            inside = list(ast.walk(node.test))
            names = {one.id for one in inside if isinstance(one, ast.Name)}
            clocks = {one.attr for one in inside if isinstance(one, ast.Attribute)} & CLOCKS
            assert not (clocks and "time" in names) or names & HANGS, f"{path.name}:{node.lineno}"
