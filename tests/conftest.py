"""Small data, small models, and a way to run the commands as a person does."""

import gc
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

from cli import config_files, entry, sweep_request
from cli.compose import Composer
from nanogpt.config import TrainConfig
from nanogpt.console import show_logs
from nanogpt.cpu_threads import choose_threads
from nanogpt.training.run_logger import RunLogger
from tests import ranks
from tests.cached_compose import Remembering, register_once
from tests.commands import command
from tests.tiny_config import tiny_config, write_corpus

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
Run = Callable[..., subprocess.CompletedProcess[str]]

show_logs()
gc.disable()  # until the tests are collected: 2 s of looking for garbage among what is only just made
sys.dont_write_bytecode = False  # hundreds of processes start here, and each would compile every module again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # several tests at once
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leave what was imported and collected out of all later garbage collections, which it would make slow."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same numbers whatever ran before it in this process."""
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)  # the former takes a trace for each kind of GPU that is not there


@pytest.fixture(autouse=True)
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process compose each choice of files once, and leave standard output to the test."""
    monkeypatch.setattr(entry, "reserve_stdout", lambda: None)
    monkeypatch.setattr(sweep_request, "Composer", Remembering)
    monkeypatch.setattr(sweep_request, "register_schemas", register_once)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: some tests wait for a process or a clock. Each has torch, so not too many."""
    found = choose_threads({})
    return min(8, 1 + (found.number if found else os.cpu_count() or 1))


@pytest.fixture(scope="session", autouse=True)
def compiled_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The cache of torch.compile belongs to this session; all its processes share it."""
    base = tmp_path_factory.getbasetemp()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
        (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "inductor"
    )


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in this process draw no loss curve, most of their time, unless a test names this fixture."""
    test = getattr(request.node, "function", None)
    if test is None or "pictures" not in inspect.signature(test).parameters:
        monkeypatch.setattr(RunLogger, "draw_loss_curve", lambda _: None)


@pytest.fixture(autouse=True)
def own_environment() -> Generator[None, None, None]:
    """What a test, or a command in this process, sets in the environment ends with it."""
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small text to train on."""
    return write_corpus(tmp_path / "corpus.txt")


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, where the machine has it."""
    path = SHARED / "data" / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tiny Shakespeare is not on this machine")
    return path


@pytest.fixture
def gpt2_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's tokenizer files, where the machine has them."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", str(SHARED / "tiktoken"))
    if not Path(folder).is_dir():
        pytest.skip("GPT-2's tokenizer files are not on this machine")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", folder)


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Callable[..., TrainConfig]:
    """Builds the config of a run of seconds: `config(**{"optimizer.lr": 1e-3})`."""

    return lambda **changes: tiny_config(tmp_path, corpus, **changes)


@pytest.fixture
def undisturbed(config: Callable[..., TrainConfig], tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The result of `config(**changes)` on `world` ranks when nothing happens; the same run is made once a session."""

    def reference(world: int = 1, **changes: object) -> dict[str, str]:
        key = (world, *sorted((name, str(value)) for name, value in changes.items()))
        if key not in UNDISTURBED:
            same = config(**changes, runs_dir=str(tmp_path / f"undisturbed-{len(UNDISTURBED)}"))
            codes, output = ranks.run(same, world)
            assert codes == [0] * world, output
            UNDISTURBED[key] = ranks.result(same)
        return UNDISTURBED[key]

    return reference


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file conf/experiment/mine.yaml to write to, with the real ones of the other groups beside it."""
    package = tmp_path / "package" / "conf"
    (package / "experiment").mkdir(parents=True)
    for path in (ROOT / "conf").iterdir():
        if path.name not in ("experiment", "__pycache__"):
            (package / path.name).symlink_to(path)
    monkeypatch.setattr(sweep_request, "Composer", Composer)  # which reads the file anew
    monkeypatch.setattr(config_files, "CONFIG_DIR", package)
    return package / "experiment" / "mine.yaml"


UNDISTURBED: dict[tuple[object, ...], dict[str, str]] = {}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `python <door>.py words…` in an empty folder and returns what happened."""
    folder = tmp_path / "work"
    folder.mkdir()

    def call(door: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return command(door, *words, folder=folder, **environment)

    return call
