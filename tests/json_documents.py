"""docs/json.md as a schema: every documented key is there, with its type, and no other."""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "json.md"
TYPES = {"text": str, "integer": int, "number": (int, float), "bool": bool, "object": dict, "any": object}
Schema = dict[str, str]
"""Type of each key path, such as `runs[].step`; `*` stands for any key."""


def read_strict(text: str) -> Any:
    """Parse JSON. Fails for NaN and Infinity, and for anything after the document."""

    def fail(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=fail)


def read_schema(title: str) -> Schema:
    """Return the table under a heading of the page."""
    section = re.split(rf"^## {re.escape(title)}$", PAGE.read_text(), flags=re.MULTILINE)[1].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| [^|]+ \|$", section, re.MULTILINE)
    assert rows, title
    return {path: kind.strip() for path, kind in rows}


def check_document(document: Any, title: str) -> None:
    """Compare a document with the table under a heading."""
    check_value(document, "", read_schema(title))


def check_value(value: Any, path: str, schema: Schema) -> None:
    if kind := schema.get(path):
        kind = kind.partition(",")[0]
        assert (value is None and kind.endswith("?")) or kind == "any" or is_of(value, kind.rstrip("?")), (path, value)
    if isinstance(value, list):
        for item in value:
            check_value(item, f"{path}[]", schema)
    elif isinstance(value, dict):
        inside = {re.split(r"\.|\[\]", rest)[0] for key in schema if (rest := strip(key, path))}
        if "*" in inside:
            for item in value.values():
                check_value(item, f"{path}.*", schema)
        elif inside:
            optional = {name for name in inside if "optional" in str(find_kinds(join(path, name), schema))}
            assert inside - optional <= value.keys() <= inside, (path, value.keys() ^ inside)
            for name, item in value.items():
                check_value(item, join(path, name), schema)
        else:
            assert path in schema, f"{path} is not documented"
    else:
        assert path in schema or schema.get(path.rpartition(".")[0]) == "any", f"{path} is not documented"


def is_of(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))


def strip(key: str, path: str) -> str:
    """Return the rest of a key path inside `path`, or an empty string."""
    return key if not path else key.removeprefix(f"{path}.") if key.startswith(f"{path}.") else ""


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def find_kinds(path: str, schema: Schema) -> list[str]:
    return [kind for key, kind in schema.items() if key == path or key.startswith((f"{path}.", f"{path}[]"))]
