"""Files that are pickles, lies and bombs, given to every command that reads them: nothing runs, one line, its code."""

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.checkpoint import load_verified, seal_manifest
from nanogpt.errors import BadCheckpoint, BadInput
from nanogpt.interop.load_model import load_run_model
from nanogpt.run_directory import RunDirectory
from nanogpt.training.nonfinite import read_incident
from tests.security.hostile import DEEP, WORST, Person, payloads

SAMPLE = ("sample.py", "max_new_tokens=1", "prompt=a")
LIST, GC = ("-m", "experiments", "list"), ("-m", "experiments", "gc")
EXPORT, SYNC = ("-m", "cli", "export", "out=out"), ("-m", "cli", "sync")


def ending(person: Person, *words: str) -> int:
    """The exit code; of what isn't done after one line."""
    done = person.give(*words)
    if done.code:
        assert done.err.startswith("error: ") and done.err.count("\n") == 1 and done.err[:-1].isprintable(), done.err
    return done.code


@pytest.mark.parametrize(
    ("file", "code", "commands"),
    [
        ("config.json", 4, [SAMPLE, SYNC, ("train.py", "resume.run=RUN"), ("-m", "experiments", "report")]),
        ("tokenizer.json", 3, [SAMPLE, EXPORT, ("train.py", "init_from=RUN", "dry_run=true")]),
        ("checkpoints/step-00000002/manifest.json", 4, [EXPORT]),
        ("checkpoints/step-00000002/model.safetensors", 4, [SAMPLE, ("train.py", "init_from=RUN", "replay=RUN")]),
        ("status.json", 0, [LIST, GC]),
        ("metrics.jsonl", 0, [LIST, GC]),
        ("timing.jsonl", 0, [LIST]),
        ("provenance.json", 0, [LIST]),
        ("log.txt", 0, [LIST]),
        ("wandb.json", 0, [LIST]),
        ("evaluations.jsonl", 0, [("evaluate.py", "eval=loss")]),
        (".lock", 0, [GC]),
    ],
)  # fmt: skip
def test_a_run(file: str, code: int, commands: list[tuple[str, ...]], person: Person, run: Path) -> None:
    """A run directory somebody sent. What only shows a run does without a file that can't be read."""
    for older in run.glob("checkpoints/step-00000001"):  # which would be used instead
        shutil.rmtree(older)
    for name, content in payloads(person).items():
        (run / file).write_bytes(content)
        slow = file.startswith(("checkpoints", "evaluations"))
        for words in commands if name in WORST else commands[: 0 if slow else 1]:
            ended = ending(person, *(word.replace("RUN", str(run)) for word in words))
            allowed = (2, 4) if "report" in words or "replay=RUN" in words else (code,)
            assert ended in allowed, (name, words)


def reseal(folder: Path) -> None:
    """Make a checkpoint's manifest true again, as somebody who means harm can."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(seal_manifest({key: manifest[key] for key in ("format", "step", "files")}))


def tensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def one(begin: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WEIGHTS = {
    "length 2**60": tensors(b"{}", length=2**60),
    "length 2**64 - 1": tensors(b"{}", length=2**64 - 1),
    "length above the limit": tensors(b"{}", length=100_000_001),
    "no length": b"\1\0",
    "negative offset": tensors({"w": one(-4, 0, [1])}, bytes(4)),
    "negative size": tensors({"w": one(0, 4, [-1])}, bytes(4)),
    "past the end": tensors({"w": one(0, 8, [2])}, bytes(4)),
    "terabytes": tensors({"w": one(0, 2**42, [2**40])}, bytes(4)),
    "more than a number holds": tensors({"w": one(0, 4, [2**62, 2**62])}, bytes(4)),
    "overlapping": tensors({"a": one(0, 4, [1]), "b": one(0, 4, [1])}, bytes(4)),
    "backwards": tensors({"w": one(4, 0, [1])}, bytes(4)),
    "a hole": tensors({"w": one(4, 8, [1])}, bytes(8)),
    "bytes that are nobody's": tensors({"w": one(0, 4, [1])}, bytes(400)),
    "nothing, in many rows": tensors({"w": one(0, 0, [0, 2**62])}),
    "many": tensors({str(i): one(0, 0, [0]) for i in range(20_000)}),
    "twice": tensors(b'{"w":%b,"w":%b}' % ((json.dumps(one(0, 4, [1])).encode(),) * 2), bytes(4)),
    "another type": tensors({"w": one(0, 4, [1], "PICKLE")}, bytes(4)),
    "half a number": tensors({"w": one(0, 4, [1.5])}, bytes(4)),
    "control characters": tensors({"\x1b[2J\n": one(0, 4, [1])}, bytes(4)),
    "nested": tensors(b'{"w":' + DEEP),
}


def test_weights(person: Person, run: Path) -> None:
    """Of a run whose manifest agrees, and of a Hugging Face folder."""
    assert person.give("-m", "cli", "export", "out=hf").code == 0
    shutil.rmtree(run / "checkpoints" / "step-00000001")
    step = run / "checkpoints" / "step-00000002"
    for content in (WEIGHTS | {"pickle": person.pickle}).values():
        for file in (step / "model.safetensors", Path("hf/model.safetensors")):
            file.write_bytes(content)
        assert person.refused(*SAMPLE, "init_from=hf") == 4
        reseal(step)
        with pytest.raises(BadCheckpoint):
            load_run_model(RunDirectory(run), "latest", torch.device("cpu"))
    assert person.refused(*SAMPLE) == 4


def test_the_numbers_of_a_checkpoint(person: Person, run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000001")
    step = run / "checkpoints" / "step-00000002"
    state: dict[str, Any] = json.loads((step / "state.json").read_bytes())
    wrong = {"step": -1, "samples": "9" * 99, "best": {"a": 1}, "results": [], "spikes": {"x": 1}, "files": 5}
    contents = [json.dumps(state | {key: value}).encode() for key, value in wrong.items()]
    for content in (*payloads(person).values(), *contents):
        (step / "state.json").write_bytes(content)
        reseal(step)
        with pytest.raises(BadCheckpoint, match=r"state\.json"):
            load_verified(step)
    assert person.refused(*SAMPLE, "checkpoint=latest") == 4


INDEX = [{"weight_map": {"w": name}} for name in (["x"], "/dev/zero", "../x", "..", "", "\0", "a\n")]
BPE = {"version": "1.0", "added_tokens": []} | dict.fromkeys(
    ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
)
TOKENIZERS = [
    {"model": {"type": "BPE"}},
    BPE | {"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}},
    BPE | {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    BPE | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["q"]}},
    BPE | {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}},
    BPE | {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
    {"model": {"type": "WordLevel", "vocab": {"ab": 0}}},
    {"model": {"type": "_target_", "_target_": "os.system"}},
    {"kind": "char", "chars": ""},
    {"kind": "bpe", "tokenizers": BPE},
    {"kind": ["x"]},
]  # fmt: skip
CONFIGS = [
    {"n_layer": 10**9},
    {"vocab_size": 2**50},
    {"n_head": -2},
    {"n_embd": "16"},
    {"layer_norm_epsilon": float("nan")},
    {"model_type": "\x1b[2J"},
]


def test_a_hugging_face_folder(person: Person) -> None:
    assert person.give("-m", "cli", "export", "out=hf").code == 0
    folder = Path("hf")
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    worst = [payloads(person)[name] for name in WORST]
    cases = [
        ("tokenizer.json", 3, [*worst, *(json.dumps(one).encode() for one in TOKENIZERS)]),
        ("config.json", 4, [*worst, *(json.dumps(config | one).encode() for one in CONFIGS)]),
    ]
    for name, code, contents in cases:
        good = (folder / name).read_bytes()
        for content in contents:
            (folder / name).write_bytes(content)
            ended = person.refused(*SAMPLE, "init_from=hf")
            assert ended == code or (ended == 2 and name == "config.json"), content[:200]
        (folder / name).write_bytes(good)
    (folder / "evil.py").write_text(f"open({str(person.canary)!r}, 'w')")
    for code_of_it in ({"auto_map": {"AutoModel": "evil.Model"}}, {"_attn_implementation_internal": "x/y"}):
        (folder / "config.json").write_text(json.dumps(config | code_of_it))
        assert person.refused(*SAMPLE, "init_from=hf") == 4, "a network of its own code is not ours, and nothing runs"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    for content in (*worst, *(json.dumps(one).encode() for one in INDEX)):
        (folder / "model.safetensors.index.json").write_bytes(content)
        assert person.refused(*SAMPLE, "init_from=hf") == 4


def test_an_incident(person: Person, run: Path) -> None:
    folder = Path("incident")
    shutil.copytree(run / "checkpoints" / "step-00000002", folder / "checkpoint")
    shutil.copy(run / "config.json", folder)
    for content in payloads(person).values():
        (folder / "incident.json").write_bytes(content)
        with pytest.raises(BadInput, match="not an incident directory"):
            read_incident(folder)
    (folder / "incident.json").write_bytes(person.pickle)
    assert person.refused("train.py", f"replay={folder}") == 2
    (folder / "incident.json").write_text('{"step": 1, "micro_batch_size": 4, "precision": "fp32"}')
    (folder / "checkpoint" / "model.safetensors").write_bytes(person.pickle)
    reseal(folder / "checkpoint")
    assert person.refused("train.py", f"replay={folder}") == 4
