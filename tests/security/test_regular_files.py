"""Only regular files are read: a pipe, a device, a socket or a folder in place of a file ends in one line, at once."""

import ast
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from nanogpt import files
from nanogpt.errors import BadCheckpoint
from nanogpt.files import check_regular, open_regular, read_bytes, read_json
from nanogpt.metrics_file import RowLog
from tests.security.hostile import Person
from tests.test_architecture import SOURCES, module_name

SAMPLE = ("sample.py", "max_new_tokens=1", "prompt=a")


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A read that waits for ever fails the test."""

    def fail(_: int, __: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "link to a pipe"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    for read in (open_regular, check_regular, read_bytes):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            read(path)
    with pytest.raises(BadCheckpoint, match=r"not a regular file|Is a directory"):
        read_json(path)
    if kind == "pipe":
        assert RowLog(path).append({"step": 1}) is False, "nor is it written to"


def test_a_json_file_is_not_read_beyond_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_JSON", 100)
    (tmp_path / "config.json").write_text("{" + " " * 200 + "}")
    with pytest.raises(BadCheckpoint, match="larger than 100 bytes"):
        read_json(tmp_path / "config.json")
    os.truncate(tmp_path / "config.json", 10**12)
    with pytest.raises(BadCheckpoint, match="larger than 100 bytes"):
        read_json(tmp_path / "config.json")


def test_pipes_in_a_run(person: Person, run: Path, words: list[str]) -> None:
    """Case 21 for every file of a run directory."""
    for name, code, command in (
        ("metrics.jsonl", 0, ("-m", "experiments", "list")),
        ("status.json", 0, ("-m", "experiments", "list")),
        ("provenance.json", 0, ("-m", "experiments", "list")),
        ("log.txt", 0, ("-m", "experiments", "list")),
        ("tokenizer.json", 3, SAMPLE),
        ("config.json", 4, (*SAMPLE, f"run={run}")),
        ("checkpoints/step-00000002/model.safetensors", 4, SAMPLE),
        ("checkpoints/step-00000002/manifest.json", 4, SAMPLE),
    ):
        shutil.copytree(run, "kept", symlinks=True)
        shutil.rmtree(run / "checkpoints" / "step-00000001", ignore_errors=True)
        put_pipe(run / name)
        done = person.give(*command)
        assert done.code == code and (not code or done.err.count("\n") == 1), (name, done)
        shutil.rmtree(run)
        Path("kept").rename(run)
    assert person.give("train.py", *words).code == 0
    (other,) = (path for path in Path("runs").iterdir() if path != run)
    put_pipe(other / "metrics.jsonl")
    assert person.refused("train.py", *words) == 4


def test_pipes_given_by_name(person: Person, gpt2_files: None) -> None:
    os.mkfifo("pipe")
    Path("tokens").mkdir()
    for name in ("train.bin", "val.bin"):
        os.mkfifo(f"tokens/{name}")
    for code, *words in (
        (2, "sample.py", "prompt=FILE:pipe"),
        (2, "sample.py", "prompts=pipe"),
        (3, "evaluate.py", "eval=hellaswag", "eval.hellaswag=pipe"),
        (3, "prepare.py", "data=text", "data.tokenizer=byte", "data.source=pipe"),
        (3, "train.py", "model=tiny", "data=text", "data.tokenizer=gpt2", "data.source=tokens", "hardware=cpu"),
    ):
        assert person.refused(*map(str, words)) == code, words


def test_pipes_in_foreign_folders(person: Person) -> None:
    assert person.give("-m", "cli", "export", "out=hf").code == 0
    for name, code in (("tokenizer.json", 3), ("config.json", 4), ("model.safetensors", 4)):
        shutil.copytree("hf", "one")
        put_pipe(Path("one") / name)
        assert person.refused(*SAMPLE, "init_from=one") == code, name
        shutil.rmtree("one")


def test_pipes_in_prepared_data(person: Person, words: list[str]) -> None:
    (folder,) = (path for path in Path("data").iterdir() if path.is_dir())
    for name in ("meta.json", "tokenizer.json", *(path.name for path in folder.glob("train*.bin"))):
        shutil.copytree(folder, "kept")
        put_pipe(folder / name)
        assert person.refused("train.py", *words, "new_attempt=true") == 3, name
        shutil.rmtree(folder)
        Path("kept").rename(folder)


def test_a_pipe_for_an_experiment_file(person: Person, experiment: Path) -> None:
    os.mkfifo(experiment)
    assert person.refused("train.py", "experiment=mine", "dry_run=true") == 2


OURS = {  # module -> why what it opens can't be a user's file, or is checked
    "nanogpt.files": "the functions that check",
    "nanogpt.cpu_threads": "/proc and /sys",
    "nanogpt.device": "/proc",
    "nanogpt.gpus": "/proc",
    "nanogpt.torch_compile": "/proc",
    "nanogpt.gpu_check.parts": "this repository's tests",
    "nanogpt.distributed.process_group": "/proc",
    "nanogpt.run_state": "/proc",
    "launch.local": "/proc",
    "nanogpt.benchmark.timing": "/proc",
    "nanogpt.benchmark.baselines": "this repository's sources",
    "nanogpt.doctor.invariants": "files that it has just written to a folder of its own",
    "experiments.document": "templates of the package",
    "cli.entry": "help pages of the package",
    "cli.help": "files of the package",
    "cli.config_files": "files of the package; chosen ones through nanogpt.files",
}
CALLS = {  # (module, call) -> why it is safe
    ("nanogpt.checkpoint", "load_file"): "after its size and digest were checked, through open_regular",
    ("nanogpt.interop.safetensors_files", "safe_open"): "after check_regular",
    ("nanogpt.interop.safetensors_files", "load_file"): "after check_regular",
    ("nanogpt.interop.pickle_import", "torch.load"): "after check_regular",
    ("nanogpt.data.hub_data", "datasets.load_dataset"): "files that were found to be regular, or a name on the Hub",
    ("launch.commands", "path.open"): "after check_regular",
    ("cli.rank_worker", "json.load"): "standard input, from the process that started it",
}
READERS = {
    "read_text",
    "read_bytes",
    "open",
    "fromfile",
    "memmap",
    "load_file",
    "safe_open",
    "load_dataset",
    "from_file",
}


def reads(path: Path) -> Iterator[tuple[int, str]]:
    """Every call of a source that opens a file for reading without looking at what it is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        last = call.rpartition(".")[2] if "." in call else call
        method = isinstance(node.func, ast.Attribute)
        if last not in READERS and call not in ("np.load", "json.load", "torch.load", "numpy.load"):
            continue
        if last in ("read_text", "read_bytes") and not method:
            continue  # those of nanogpt.files, or of the module itself
        if last == "open" and (writes(node, method) or call == "webbrowser.open"):
            continue
        yield node.lineno, call


def writes(node: ast.Call, method: bool) -> bool:
    """Whether a call of open is for writing, by its mode or by the flags of os.open."""
    text = ast.unparse(node)
    if "O_WRONLY" in text:
        return True
    modes = [*node.args[0 if method else 1 :], *(word.value for word in node.keywords if word.arg == "mode")]
    return any(isinstance(one, ast.Constant) and str(one.value)[:1] in ("w", "a", "x") for one in modes)


def test_every_read_is_of_a_regular_file() -> None:
    bare: list[str] = []
    for path in SOURCES:
        module = module_name(path)
        if module in OURS or module.startswith("launch.slurm_sandbox"):  # a Slurm of its own, in a folder of its own
            continue
        bare += [f"{module}:{line}: {call}" for line, call in reads(path) if (module, call) not in CALLS]
    assert not bare, "read it with nanogpt.files, or say here why not"


def test_the_check_sees_them(tmp_path: Path) -> None:
    for text in (
        "x.read_text()",
        "open(x)",
        "open(x, 'rb')",
        "p.open()",
        "p.open('rb')",
        "os.open(p, os.O_RDONLY)",
        "np.memmap(x)",
        "load_file(x)",
        "json.load(f)",
    ):
        (tmp_path / "x.py").write_text(text)
        assert list(reads(tmp_path / "x.py")), text
    for text in ("read_text(x)", "open(x, 'w')", "p.open('ab')", "os.open(p, os.O_WRONLY | os.O_CREAT)"):
        (tmp_path / "x.py").write_text(text)
        assert not list(reads(tmp_path / "x.py")), text
