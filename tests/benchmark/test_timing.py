"""No test depends on how fast the machine is: a busy one is slower, not wrong."""

import ast
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).parent.glob("**/*.py"))
CLOCKS = {"monotonic", "perf_counter", "time"}
HANGS = {"deadline", "limit"}
"""Names of the moments, minutes away, after which a test is sure to hang."""


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_nothing_is_asserted_about_elapsed_time(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assert):
            inside = list(ast.walk(node.test))
            names = {one.id for one in inside if isinstance(one, ast.Name)}
            clocks = {one.attr for one in inside if isinstance(one, ast.Attribute)} & CLOCKS
            assert not (clocks and "time" in names) or names & HANGS, f"{path.name}:{node.lineno}"
