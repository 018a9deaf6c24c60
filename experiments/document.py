"""A page of blocks, written as Markdown with plots beside it and as one self-contained HTML file.

Text from run directories (names, values, errors) is escaped by the templates, never here.
"""

import base64
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import jinja2

from experiments.plots.theme import Picture
from nanogpt.errors import BadEnvironment, one_line
from nanogpt.files import write_atomic
from nanogpt.formatting import escape_control_chars
from nanogpt.tracking.plots import DARK, PLOT_FORMATS, PlotFormat

TEMPLATES = Path(__file__).with_name("templates")
SCREEN_DPI = 130


@dataclass(frozen=True)
class Heading:
    """Title of the blocks after it."""

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
    """Text, and the number it is sorted by, if not by the text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class TableBlock:
    """A table, sortable by a click on a column; `marked` is the row of the best."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: int | None = None
    name: str = ""
    """Name of the table's own file, if it has one."""
    kind: Literal["table"] = "table"

    @cached_property
    def numeric(self) -> list[bool]:
        return [any(row[i].value is not None for row in self.rows) for i in range(len(self.columns))]


@dataclass(frozen=True)
class Code:
    """Preformatted text. With a title it is folded."""

    text: str
    title: str = ""
    kind: Literal["code"] = "code"


@dataclass(frozen=True)
class Figure:
    """A plot."""

    picture: Picture
    kind: Literal["figure"] = "figure"

    @property
    def light(self) -> str:
        return data_uri(self.picture.light)

    @property
    def dark(self) -> str:
        return data_uri(self.picture.render("png", DARK))

    @property
    def width(self) -> int:
        """Return the width on a page, in CSS pixels."""
        return round(SCREEN_DPI * self.picture.size[0])


Block = Heading | Note | TableBlock | Code | Figure


@dataclass(frozen=True)
class Page:
    """A page with a title."""

    title: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """Return the page as one HTML file."""
        style, script = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
        policy = (
            f"default-src 'none'; img-src data:; style-src '{csp_hash(style)}'; script-src '{csp_hash(script)}'; "
            "base-uri 'none'; form-action 'none'"
        )
        return (
            template_environment()
            .get_template("page.html")
            .render(page=self, style=style, script=script, policy=policy)
        )

    def markdown(self) -> str:
        """Return the page as Markdown, with its plots in plots/."""
        text = template_environment().get_template("page.md").render(page=self)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    def write(
        self,
        folder: Path,
        name: str,
        formats: Collection[str] = ("md", "html"),
        data: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Path]:
        """Write the page as `name`, its plots and `data` in the formats, each file atomically. Return the files.

        Raises BadEnvironment.
        """
        written: list[Path] = []
        try:
            for file, content in (*self.files(name, formats), *data.items()):
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, content)
                written.append(path)
        except OSError as error:
            where = one_line(Path(error.filename) if error.filename else folder)
            why = one_line(error.strerror or error, 200)
            raise BadEnvironment(f"{where}: can't be written: {why}; out=FOLDER writes elsewhere") from None
        return written

    def files(self, name: str, formats: Collection[str]) -> Iterator[tuple[str, str | bytes]]:
        """Yield name and content of the page's files: plots first, as pages refer to them."""
        kinds: list[PlotFormat] = [
            kind for kind in PLOT_FORMATS if kind in formats or (kind == "png" and "md" in formats)
        ]
        for block in self.blocks:
            if isinstance(block, Figure):
                for kind in kinds:
                    content = block.picture.light if kind == "png" else block.picture.render(kind)
                    yield f"plots/{block.picture.name}.{kind}", content
        if "md" in formats:
            yield f"{name}.md", self.markdown()
        if "html" in formats:
            yield f"{name}.html", self.html()


@cache
def template_environment() -> jinja2.Environment:
    """Return templates that escape everything, for HTML automatically and for Markdown through a filter."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        finalize=make_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["md"] = escaped_markdown
    made.filters["fence"] = code_fence
    return made


def make_printable(value: object) -> object:
    """Return a text whose control characters are escaped: no power over a terminal or a browser."""
    if not isinstance(value, str) or value.isprintable():
        return value
    lines = (escape_control_chars(line) for line in value.split("\n"))
    return type(value)("\n".join(lines))


def escaped_markdown(text: str) -> str:
    """Return a text that Markdown shows literally, on one line, also in a table."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*_{}\[\]<>|~#$&])", r"\\\1", line)
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", line)  # no list


def code_fence(text: str) -> str:
    """Return more backticks than the text has in a row."""
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))


def csp_hash(text: str) -> str:
    """Return the hash by which a content security policy admits a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
