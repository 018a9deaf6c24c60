"""Small benchmarks in plain words, in the formats they are found in."""

import json
from pathlib import Path

PAGE = " = Title {0} = \n \n A page of {0} words , or so . \n = = Section = = \n It ' s a list ; of ( things ) . \n"


def write_hellaswag(folder: Path, count: int = 6) -> Path:
    """Six lines an item."""
    lines: list[str] = []
    for i in range(count):
        lines += [
            f"Alpha beta: gamma {i} delta. the",
            str(i % 4),
            "epsilon goes",
            "alpha",
            "beta beta stays on",
            "é ...",
        ]
    path = folder / "hellaswag_val.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_lambada(folder: Path, count: int = 6) -> Path:
    """Write a JSON object per line."""
    path = folder / "lambada_test.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"alpha beta {i} gamma delta{' x' * i} beta"}) + "\n" for i in range(count))
    )
    return path


def write_wikitext(folder: Path, count: int = 3) -> Path:
    """Running text with titles."""
    path = folder / "wiki.test.raw"
    path.write_text(" \n" + "".join(PAGE.format(i) * 2 for i in range(count)))
    return path
