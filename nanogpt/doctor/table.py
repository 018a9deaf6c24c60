"""The findings as a table that grows: in colour on a terminal, else one plain line for each."""

import sys
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nanogpt.doctor.finding import Finding

COLOURS = {"ok": "green", "note": "yellow", "failed": "red"}


class Findings:
    """Shows each finding as soon as it is there."""

    def __init__(self, names: list[str]) -> None:
        self.width = max(map(len, names), default=0)
        self.table = Table("check", "", "what was found")
        self.live = Live(self.table, console=Console()) if sys.stdout.isatty() else None

    def __enter__(self) -> "Findings":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def add(self, name: str, found: Finding) -> None:
        """One more row, with what to do below what was found."""
        remedy = f"-> {found.remedy}" if found.remedy else ""
        if self.live:
            text = Text(found.what + (f"\n{remedy}" if remedy else ""))
            self.table.add_row(name, Text(found.state, COLOURS[found.state]), text)
            self.live.refresh()
            return
        print(f"{found.state:<6} {name:<{self.width}}  {found.what}", flush=True)
        if remedy:
            print(f"{'':<6} {'':<{self.width}}  {remedy}", flush=True)
