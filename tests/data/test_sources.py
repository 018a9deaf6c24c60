"""Files of every format: read correctly, or refused by name."""

import bz2
import gzip
import json
import lzma
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from nanogpt.data.dataset import Dataset
from nanogpt.data.file_kinds import detect_kind
from nanogpt.data.prepare import prepare
from nanogpt.data.rows import read_rows
from nanogpt.errors import BadData
from tests.data.conftest import Make, text_of

ROWS = [f'Row {i}, "quoted",\nwith a second line, é and 日本.' for i in range(120)]
TEXT = "A line.\nAnother, with é.\n" * 40


def rows_of(dataset: Dataset) -> list[str]:
    """Return the sorted documents of both splits, without the newline that ends each."""
    text = text_of(dataset, dataset.train) + text_of(dataset, dataset.val)
    return sorted(f"Row {row.removesuffix(chr(10))}" for row in text.split("Row ")[1:])


def csv_text(delimiter: str) -> bytes:
    lines = [
        f"id{delimiter}text",
        *(f'{i}{delimiter}"{row.replace(chr(34), chr(34) * 2)}"' for i, row in enumerate(ROWS)),
    ]
    return "\r\n".join(lines).encode()


def arrow_file(path: Path, stream: bool = False) -> None:
    table = pa.table({"text": ROWS})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=50)


def zstd(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


JSON_LINES = "\n\n".join(json.dumps({"id": i, "text": row}) for i, row in enumerate(ROWS)).encode()
WRITE: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(JSON_LINES),
    "a.JSONL": lambda path: path.write_bytes(JSON_LINES),
    "a.ndjson": lambda path: path.write_bytes(b"\xef\xbb\xbf" + JSON_LINES),
    "a.json": lambda path: path.write_text(json.dumps([{"text": row} for row in ROWS], indent=1)),
    "lines.json": lambda path: path.write_bytes(JSON_LINES),
    "a.Csv": lambda path: path.write_bytes(b"\xef\xbb\xbf" + csv_text(",")),
    "a.tsv": lambda path: path.write_bytes(csv_text("\t")),
    "a.parquet": lambda path: pq.write_table(pa.table({"text": ROWS}), path, row_group_size=30),
    "large.parquet": lambda path: pq.write_table(pa.table({"text": pa.array(ROWS, pa.large_string())}), path),
    "codes.PARQUET": lambda path: pq.write_table(pa.table({"text": pa.array(ROWS).dictionary_encode()}), path),
    "no_ending": lambda path: pq.write_table(pa.table({"text": ROWS}), path),
    "a.arrow": arrow_file,
    "stream.arrow": lambda path: arrow_file(path, stream=True),
    "a.feather": lambda path: feather.write_feather(pa.table({"text": ROWS}), str(path)),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(JSON_LINES)),
    "hidden_gz.jsonl": lambda path: path.write_bytes(gzip.compress(JSON_LINES[:500]) + gzip.compress(JSON_LINES[500:])),
    "a.csv.bz2": lambda path: path.write_bytes(bz2.compress(csv_text(","))),
    "a.jsonl.XZ": lambda path: path.write_bytes(lzma.compress(JSON_LINES)),
    "a.ndjson.zst": lambda path: path.write_bytes(zstd(JSON_LINES[:700]) + zstd(JSON_LINES[700:])),
    "a.jsonl.lzma": lambda path: path.write_bytes(lzma.compress(JSON_LINES, lzma.FORMAT_ALONE)),
}


@pytest.mark.parametrize("name", WRITE)
def test_rows_of_every_kind_are_read(data: Make, tmp_path: Path, name: str) -> None:
    WRITE[name](tmp_path / name)
    assert rows_of(prepare(data(source=str(tmp_path / name), tokenizer="byte", val_fraction=0.3))) == sorted(ROWS)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.txt", lambda content: content),
        ("bom.TXT", lambda content: b"\xef\xbb\xbf" + content),
        ("crlf.md", lambda content: content.replace(b"\n", b"\r\n")),
        ("a.txt.gz", gzip.compress),
        ("a.txt.bz2", bz2.compress),
        ("a.xz", lzma.compress),
        ("a.zst", zstd),
        ("unnamed", gzip.compress),
    ],
)
def test_text_of_every_kind_is_the_same_text(
    data: Make, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / name).write_bytes(pack(TEXT.encode()))
    dataset = prepare(data(source=str(tmp_path / name)))
    assert text_of(dataset, dataset.train) + text_of(dataset, dataset.val) == TEXT


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ARCHIVE = "is a zip archive"
REFUSED: dict[str, tuple[bytes, str]] = {
    "lfs.txt": (LFS, "is a Git LFS pointer, not the file itself; get it with: git lfs pull"),
    "lfs.parquet": (LFS, "git lfs pull"),
    "lfs.jsonl.gz": (LFS, "git lfs pull"),
    "annex.csv": (b"/annex/objects/SHA256E-s10--abc.csv\n", "git annex get"),
    "latin.txt": (b"caf\xe9 " * 10, r"not UTF-8 text \(byte 3\); .*iconv -f LATIN1 -t UTF-8 .*latin.txt > NEW"),
    "latin.csv": (b"id,text\n1,caf\xe9\n", "latin.csv: line 2: not UTF-8"),
    "utf16.txt": (TEXT.encode("utf-16"), "is UTF-16 text, UTF-8 is needed; convert it: iconv -f UTF-16 "),
    "le.txt": (TEXT.encode("utf-16-le"), "iconv -f UTF-16LE "),
    "be.jsonl": (JSON_LINES.decode().encode("utf-16-be"), "iconv -f UTF-16BE "),
    "utf32.txt": (TEXT.encode("utf-32"), "iconv -f UTF-32 "),
    "utf32_be.txt": (TEXT.encode("utf-32-be"), "iconv -f UTF-32 "),
    "nul.txt": (b"text\0" + TEXT.encode(), "not text: a NUL at byte 4"),
    "late_nul.txt": (TEXT.encode() * 20 + b"\0", "not text: a NUL at byte"),
    "a.pdf": (b"%PDF-1.7\n...", "is a PDF"),
    "a.docx": (b"PK\x03\x04....", ARCHIVE),
    "picture.txt": (b"\x89PNG\r\n\x1a\n....", "is a picture"),
    "cut.txt.gz": (gzip.compress(os.urandom(999))[:500], "can't be read as gzip data"),
    "cut.jsonl.zst": (
        zstd(bytes(random.Random(1).choices(range(97, 123), k=9999)))[:5000],
        "can't be read as zstd data",
    ),
    "not.txt.gz": (TEXT.encode(), "is not gzip data, as its name says"),
    "gz_as.bz2": (gzip.compress(TEXT.encode()), "is not bzip2 data, as its name says"),
    "twice.txt.gz": (gzip.compress(gzip.compress(TEXT.encode())), "is gzip data inside gzip data"),
    "text.parquet": (TEXT.encode(), "is not parquet, as its name says"),
    "empty.parquet": (b"", "is not parquet, as its name says: it is empty"),
    "cut.parquet": (b"PAR1\x15" + b"x" * 100, "can't be read as parquet"),
    "white.txt": (b" \n\t\n" * 50, "there is no text in it"),
    "empty.txt": (b"", "there is no text in it"),
    "columns.csv": (b"id,body\n1,a\n", "data.text_column=text: .*columns.csv: no such column; its columns: id, body"),
    "twice.csv": (b"text,text\na,b\n", "several columns of that name"),
    "quote.csv": (b'text\n"open\nmore\n', "quote.csv: line 3: unexpected end of data"),
    "field.csv": (b"id,text\n1,a,b\n", "line 2: 3 fields, the header has 2"),
    "object.json": (b'{\n "text": ["a"]\n}', "line 1: not JSON"),
    "broken.json": (b'[{"text": "a"}, ', "not a JSON array of objects"),
    "list.jsonl": (b'{"text": "a"}\n[1]\n', "list.jsonl, line 2: a list instead of an object"),
    "number.jsonl": (b'{"text": "a"}\n\n{"text": 5}\n', "number.jsonl, line 3: 'text' is a number, not text"),
    "null.jsonl": (b'{"text": null}\n', "line 1: 'text' is null, not text; data.on_bad_row=skip"),
    "keys.jsonl": (b'{"text": "a"}\n{"body": "b", "id": 1}\n', "line 2: no 'text' in it; its keys are body, id"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', "half a surrogate pair"),
    "deep.jsonl": (b'{"text": ' + b"[" * 99_999, "line 1: not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_t_be_read_is_named_and_leaves_nothing(data: Make, tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadData, match=message):
        prepare(data(source=str(tmp_path / name), tokenizer="byte", val_fraction=0.5))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_column_of_other_values_is_refused(data: Make, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [[1], [2]], "n": [1, 2]}), tmp_path / "a.parquet")
    for column in ("text", "n"):
        with pytest.raises(BadData, match=rf"data.text_column={column}: .*the column holds .*int64.*, not text"):
            prepare(data(source=str(tmp_path / "a.parquet"), text_column=column))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.jsonl", "README.md"), r"1 text \(README.md\); 1 jsonl \(a.jsonl\); choose one kind with a glob"),
        (("a.jsonl", "dataset_infos.json"), r"1 jsonl .*1 json \(dataset_infos.json\)"),
        (("a.jsonl", "LICENSE", "notes.txt"), r"2 text \(LICENSE, notes.txt\)"),
        (("a.csv", "b.tsv"), "1 csv .*1 tsv"),
        (("a.jsonl", "b.parquet"), "1 jsonl .*1 parquet"),
        (("a.txt.gz", "b.jsonl.gz"), "1 text .*1 jsonl"),
    ],
)
def test_files_of_several_kinds_are_refused(data: Make, tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    folder = tmp_path / "mix"
    folder.mkdir()
    for name in files:
        content = JSON_LINES if "json" in name else csv_text(",") if ".csv" in name else TEXT.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": ROWS}), folder / name)
    with pytest.raises(BadData, match=message):
        prepare(data(source=str(folder)))
    assert not Path(data().dir).exists()


def test_text_and_packed_text_go_together(data: Make, tmp_path: Path) -> None:
    folder = tmp_path / "mix"
    folder.mkdir()
    (folder / "a.md").write_text("one\n" * 50)
    (folder / "b.txt.gz").write_bytes(gzip.compress(b"two\n" * 50))
    dataset = prepare(data(source=str(folder), val_fraction=0.5))
    assert text_of(dataset, dataset.train) == "one\n" * 25 + "two\n" * 25


def test_text_that_holds_json_lines_is_said(data: Make, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(JSON_LINES)
    assert "read as plain text, though the lines are JSON objects" in prepare(data(source=f"{tmp_path}/a.txt")).notes[0]


def test_bad_rows_are_left_out_and_counted_on_request(data: Make, tmp_path: Path) -> None:
    bad = ['{"text": null}', "{", '{"body": "x"}', '{"text": 7}', "\udcff"]
    good = [json.dumps({"text": row}) for row in ROWS]
    lines = [
        line for i, row in enumerate(good) for line in ([bad[i // 20], row] if i % 20 == 10 and i < 100 else [row])
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    config = data(source=str(path), tokenizer="byte", val_fraction=0.3)
    with pytest.raises(BadData, match=r"a.jsonl, line 11: 'text' is null, not text; data.on_bad_row=skip"):
        prepare(config)
    skipping = config.model_copy(update={"on_bad_row": "skip"})
    dataset = prepare(skipping)
    assert rows_of(dataset) == sorted(ROWS)
    meta = json.loads((dataset.folder / "meta.json").read_text())
    assert meta["bad_rows"] == 5 and meta["documents"] == len(ROWS)
    (note,) = dataset.notes
    assert note.startswith("left out, rows without a text: 5 (a.jsonl, line 11: 'text' is null") and "line 53" in note
    assert note.count("a.jsonl, line") == 3 and prepare(skipping).notes == dataset.notes
    with pytest.raises(BadData, match="left out 5 rows"):
        prepare(config)


def test_rows_that_are_all_bad_name_the_first(data: Make, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "a"}\n' * 3)
    for tokenizer in ("char", "byte"):
        with pytest.raises(BadData, match=r"no text in it; no row has a text, e.g. a.jsonl, line 1: no 'text' in it"):
            prepare(data(source=str(tmp_path / "a.jsonl"), on_bad_row="skip", tokenizer=tokenizer))


@pytest.mark.parametrize("delimiter", ["\t", ","])
def test_quotes_are_read_as_pandas_reads_them(tmp_path: Path, delimiter: str) -> None:
    """A quoted field may hold delimiters and line ends; quotes inside an unquoted field are plain text."""
    pandas = pytest.importorskip("pandas")
    texts = [
        "plain",
        "a\tb",
        "a,b",
        "two\nlines",
        "two\r\nlines",
        'say "hi"',
        '"',
        '5" disk',
        " blank ",
        "",
        "\n",
        '""',
    ]
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    unquoted = ["plain", 'say "hi" now', '5" disk', ' "blank" ', "", "it's"]
    for end in ("\n", "\r\n"):
        lines = [f"id{delimiter}text", *(f"{i}{delimiter}{field}" for i, field in enumerate([*quoted, *unquoted]))]
        path = tmp_path / ("a.tsv" if delimiter == "\t" else "a.csv")
        path.write_bytes(("\ufeff" + end.join(lines)).encode())
        found = [row.text for row in read_rows(path, detect_kind(path), "text")]
        assert found == texts + unquoted
        assert found == pandas.read_csv(path, sep=delimiter, keep_default_na=False)["text"].tolist()


@pytest.mark.parametrize("field", ['"Hello" he said', '"open\n2\tHe said "no"'])
def test_a_quote_that_doesn_t_end_its_field_is_refused(data: Make, tmp_path: Path, field: str) -> None:
    """pandas drops such quotes, or takes several lines for a field."""
    (tmp_path / "a.tsv").write_text(f"id\ttext\n1\t{field}\n")
    with pytest.raises(BadData, match=r"a.tsv: line \d: .* expected after .*; double the quotes inside quoted fields"):
        prepare(data(source=str(tmp_path / "a.tsv")))


def test_a_zip_archive_is_refused(data: Make, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", TEXT)
    with pytest.raises(BadData, match=ARCHIVE):
        prepare(data(source=str(tmp_path / "texts.zip")))
