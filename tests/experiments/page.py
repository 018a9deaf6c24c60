"""A report's page, taken apart."""

from html.parser import HTMLParser
from pathlib import Path

from experiments.report import report
from nanogpt.config import ReportConfig

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(2)> | `x` **b** \x1b[31m"


class Page(HTMLParser):
    """Tags with their attributes, tables as text, and the links that leave the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tables and self.tables[-1] and self.tables[-1][-1] and self.lasttag in ("td", "button"):
            self.tables[-1][-1][-1] += data.strip()

    def column(self, title: str, table: int = 0) -> list[str]:
        head, *rows = self.tables[table]
        return [row[head.index(title)] for row in rows]


def reported(folder: Path, **changes: object) -> Page:
    """Write a folder's report and return its page."""
    assert report(ReportConfig(targets=(str(folder),), **changes)) == 0  # type: ignore[arg-type]
    return Page((folder / "report.html").read_text())
