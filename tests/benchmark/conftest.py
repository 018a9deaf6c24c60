"""Peaks that aren't known are measured for a moment only."""

import pytest

from nanogpt.benchmark import floors


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "SIDES", (64, 128))
    monkeypatch.setattr(floors, "COPIED", 2**22)
    monkeypatch.setattr(floors, "SECONDS", 0.01)
