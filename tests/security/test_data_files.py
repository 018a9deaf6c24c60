"""Data that are pickles, lies and bombs, given to every command that reads them: nothing runs, one line, its code."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from nanogpt.data.dataset import open_prepared
from nanogpt.errors import BadData
from tests.security.hostile import DEEP, WORST, Evil, Person, payloads


def test_prepared_data(person: Person) -> None:
    (folder,) = (path for path in Path("data").iterdir() if path.is_dir())
    meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
    names: list[bytes] = []
    for name in ("../x", "/etc/passwd", "/dev/zero", "a\0b", "..", "", "\x1b[2J"):
        meta["splits"]["train"]["shards"][0]["file"] = name
        names.append(json.dumps(meta).encode())
    cases = {"meta.json": [*payloads(person).values(), *names], "tokenizer.json": [*payloads(person).values()]}
    cases |= {path.name: [person.pickle + bytes(len(person.pickle) % 2)] for path in folder.glob("*.bin")}
    for name, contents in cases.items():
        good = (folder / name).read_bytes()
        for content in contents:
            (folder / name).write_bytes(content)
            with pytest.raises(BadData) as error:
                open_prepared(folder)
            assert str(error.value).isprintable()
        (folder / name).write_bytes(person.pickle)
        assert person.refused("evaluate.py", "eval=loss") == 3
        (folder / name).write_bytes(good)


NPY = b"\x93NUMPY\x01\x00\x56\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(85) + b"\n"


def test_token_files(person: Person) -> None:
    """Ours, llm.c's and nanoGPT's are numbers whatever they hold: a pickle reads as ids that the vocabulary lacks."""
    folder = Path("tokens")
    folder.mkdir()
    words = ["data=text", f"data.source={folder}", "data.tokenizer=byte", "hardware=cpu", "training.steps=1"]
    words += ["schedule.warmup_steps=0", "eval.tokens=64", "model.block_size=16", "training.batch_tokens=64"]
    long = [struct.pack("<3i", 20240520, 1, count) + bytes(1012) for count in (2**31 - 1, -5, 7)]
    for content in (person.pickle * 9, NPY + person.pickle * 9, *long):
        for name in ("train.bin", "val.bin"):
            (folder / name).write_bytes(content + bytes(len(content) % 2))
        assert person.refused("train.py", *words) == 3
    for name in WORST:
        (folder / "tokenizer.json").write_bytes(payloads(person)[name])
        assert person.refused("train.py", *words, "dry_run=true") == 3
    (folder / "tokenizer.json").unlink()
    vocabulary = pickle.dumps({"vocab_size": 1, "itos": {0: Evil(person.canary)}, "stoi": {}})
    for content in (person.pickle, vocabulary, pickle.dumps({"itos": {0: "b", 1: "a"}}), b"\x80\x05" + b"(" * 10_000):
        (folder / "meta.pkl").write_bytes(content)
        assert person.refused("train.py", *words) == 3
        assert person.refused("-m", "nanogpt.interop.pickle_import", str(folder / "meta.pkl")) == 3
    assert not (folder / "tokenizer.json").exists()


def test_texts_and_tables(person: Person) -> None:
    pytest.importorskip("datasets")
    prepare = ("prepare.py", "data=text", "data.tokenizer=byte")
    for name in ("x.txt", "x.jsonl", "x.json", "x.parquet", "x.npy", "x.pkl", "x.pt"):
        Path(name).write_bytes(person.pickle)
        assert person.refused(*prepare, f"data.source={name}") == 3
        assert person.refused("evaluate.py", "eval=hellaswag", f"eval.hellaswag={name}") == 3
        assert person.refused("sample.py", f"prompt=FILE:{name}") == 2
        assert person.refused("sample.py", f"prompts={name}") == 2
    Path("deep.jsonl").write_bytes(b'{"text":' + DEEP)
    assert person.refused(*prepare, "data.source=deep.jsonl") == 3
    assert person.refused("evaluate.py", "eval=hellaswag", "eval.hellaswag=deep.jsonl") == 3
    assert person.refused("sample.py", "prompts=deep.jsonl") == 2


def test_tables_with_types_of_their_own(person: Person) -> None:
    """pyarrow once opened the pickle of an extension type when it met one in a table's schema (CVE-2023-47248)."""
    pytest.importorskip("datasets")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": person.pickle}
    column = arrow.field("text", arrow.string(), metadata=about)
    parquet.write_table(arrow.table([["some text"] * 99], arrow.schema([column])), "x.parquet")
    person.give("prepare.py", "data=text", "data.tokenizer=byte", "data.source=x.parquet")


def test_a_hub_data_set_in_a_folder(person: Person) -> None:
    """`data.hub` may name a folder; no script in it is run, and of formats that are pickles none is read."""
    pytest.importorskip("datasets")
    folder = Path("evil")
    folder.mkdir()
    words = ("prepare.py", "data=text", "data.corpus=hub", "data.hub=evil", "data.tokenizer=byte")
    for name in ("x.pkl", "x.pickle", "x.pt", "x.npy"):
        (folder / name).write_bytes(person.pickle)
    assert person.refused(*words) == 5
    (folder / "evil.py").write_text(f"open({str(person.canary)!r}, 'w')")
    assert person.refused(*words) == 5


def test_a_pickle_that_hydra_would_open(person: Person) -> None:
    """Hydra's --experimental-rerun unpickles the file that it names."""
    Path("config.pickle").write_bytes(person.pickle)
    for words in (
        ("--experimental-rerun", "config.pickle"),
        ("--experimental-rerun=config.pickle",),
        ("-sc", "install=bash", "--experimental-rerun", "config.pickle"),
        ("--shell-completion", "--experimental-rerun=config.pickle"),
        ("-sc", "install=bash", "--exp=config.pickle"),
        ("--cfg", "hydra", "--experimental-rerun=config.pickle"),
        ("--info", "--experimental-rerun=config.pickle"),
        ("-sc", "install=bash", "--config-dir", "/etc"),
        ("-sc", "install=bash;x"),
    ):
        assert person.refused("train.py", *words) == 2
