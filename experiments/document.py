"""A page made of blocks, written as Markdown with PNGs beside it and as one HTML file that needs nothing else.

Whatever comes from run directories (names, values, errors) is escaped by the templates, never here.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import jinja2

from experiments.plots.theme import Picture
from nanogpt.console import escape_control_chars
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.files import write_atomic

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    text: str
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True)
class Note:
    """A paragraph; `warning` for what a reader must not miss."""

    text: str
    warning: bool = False
    kind: Literal["note"] = "note"


@dataclass(frozen=True)
class Cell:
    """What is read, and what it is sorted by: a number, or the text itself."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click on a column; a row may be marked as the best."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: int | None = None
    kind: Literal["table"] = "table"

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(row[i].value is not None for row in self.rows) for i in range(len(self.columns))]


@dataclass(frozen=True)
class Code:
    """Text as it is: commands, differences. Long ones are folded under their title."""

    text: str
    title: str = ""
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class Figure:
    """A picture."""

    picture: Picture
    kind: Literal["figure"] = "figure"

    @property
    def light(self) -> str:
        return data_uri(self.picture.light)

    @property
    def dark(self) -> str:
        return data_uri(self.picture.dark)


Block = Heading | Note | Table | Code | Figure


@dataclass(frozen=True)
class Document:
    """A whole page."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """The page as one file."""
        style, script = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
        policy = (
            f"default-src 'none'; img-src data:; style-src '{digest(style)}'; script-src '{digest(script)}'; "
            "base-uri 'none'; form-action 'none'"
        )
        return environment().get_template("page.html").render(page=self, style=style, script=script, policy=policy)

    def markdown(self) -> str:
        """The page as text, with the pictures in plots/."""
        text = environment().get_template("page.md").render(page=self)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    def write(self, folder: Path, name: str) -> list[Path]:
        """`name`.md, `name`.html and plots/, each replaced as a whole. Raises BadEnvironment."""
        try:
            return self.written(folder, name)
        except OSError as error:
            where = one_line(Path(error.filename) if error.filename else folder)
            why = one_line(error.strerror or error, 200)
            raise BadEnvironment(f"{where}: can't be written: {why}; out=FOLDER writes elsewhere") from None

    def written(self, folder: Path, name: str) -> list[Path]:
        """The same. Raises OSError."""
        plots = folder / "plots"
        plots.mkdir(parents=True, exist_ok=True)
        pictures = [block.picture for block in self.blocks if isinstance(block, Figure)]
        for picture in pictures:
            write_atomic(plots / f"{picture.name}.png", picture.light)
        pages = [folder / f"{name}.md", folder / f"{name}.html"]
        for path, text in zip(pages, (self.markdown(), self.html()), strict=True):
            write_atomic(path, text)
        return [*pages, *(plots / f"{picture.name}.png" for picture in pictures)]


@cache
def environment() -> jinja2.Environment:
    """Templates that escape everything they are given, for HTML, or for Markdown through a filter."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["md"] = escaped_markdown
    made.filters["fence"] = fence
    return made


def printable(value: object) -> object:
    """A text without power over a terminal or a browser: control characters are written as escapes."""
    if not isinstance(value, str) or value.isprintable():
        return value
    lines = (escape_control_chars(line) for line in value.split("\n"))
    return type(value)("\n".join(lines))


def escaped_markdown(text: str) -> str:
    """A text that Markdown shows as it is, on one line, in a cell of a table too."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", line)
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", line)  # no list


def fence(text: str) -> str:
    """More backticks than the text has in a row."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def digest(text: str) -> str:
    """How a content security policy names a script or a style that may be used."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
