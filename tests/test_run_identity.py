"""Which run a config means: by content and precision, not by spelling; runs of the first release are found."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.compose import Point
from cli.sweep_request import read_sweep
from launch.precision_check import check_precisions
from launch.study import PlannedRun, plan_runs, plan_study
from nanogpt import schema
from nanogpt.config import DataConfig, TrainConfig
from nanogpt.data.content import CACHE_FILE
from nanogpt.data.folders import SOURCE_FILE, find_dataset_folder, folder_by_path, resolve_source
from nanogpt.data.prepare import prepare, prepare_if_small
from nanogpt.errors import BadCheckpoint, BadData
from nanogpt.run_directory import locate_run, open_run
from nanogpt.run_identity import resolve_digests
from nanogpt.schema import signature
from nanogpt.training.related_runs import find_related_run
from nanogpt.weights_digest import check_weights

Build = Callable[..., TrainConfig]


def make_run(config: TrainConfig, digits: str, precision: str = "fp32") -> Path:
    """A run directory as a run that began leaves it; of the first release without a digest in its config."""
    path = Path(config.runs_dir) / f"{config.run_name}-{digits[:8]}"
    path.mkdir(parents=True)
    stored = json.loads(schema.to_json(config))
    if config.data.source_sha256 is None:
        del stored["data"]["source_sha256"]
    (path / "config.json").write_text(json.dumps(stored))
    start = {"from_step": 0, "data": "", "arithmetic": {"precision": precision, "fp8": False}}
    (path / "provenance.json").write_text(json.dumps([start]))
    return path


def test_the_same_text_elsewhere_is_the_same_run(
    config: Build, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = locate_run(config())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    shutil.copy(corpus, tmp_path / "other" / "copy.txt")
    os.symlink(corpus, tmp_path / "link.txt")
    sources = [corpus.name, f"./{corpus.name}", f"other/../{corpus.name}", "other/copy.txt", "link.txt", "corp*.txt"]
    assert {locate_run(config(**{"data.source": source})) for source in sources} == {first}
    (tmp_path / "other" / "copy.txt").write_text("another text")
    assert locate_run(config(**{"data.source": "other/copy.txt"})) != first


def test_names_within_a_source_count(config: Build, tmp_path: Path) -> None:
    """They decide order and split."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.txt").write_text(f"text {i} " * 50)
    a, b = (config(**{"data.source": str(tmp_path / name)}) for name in ("a", "b"))
    assert locate_run(a) == locate_run(b) == locate_run(config(**{"data.source": str(tmp_path / "a" / "*.txt")}))
    (tmp_path / "b" / "0.txt").rename(tmp_path / "b" / "3.txt")
    assert locate_run(a) != locate_run(b)


def test_the_split_of_many_files_doesn_t_depend_on_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two/deep"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(60):
            (tmp_path / name / f"{i:02d}.txt").write_text(f"document number {i}\n" * 5)
    monkeypatch.chdir(tmp_path)
    sources = ["one", str(tmp_path / "one"), "two/deep", "./two/deep/*.txt"]
    sets = [
        prepare(DataConfig(corpus="text", source=source, val_fraction=0.2, dir=f"data{i}"))
        for i, source in enumerate(sources)
    ]
    assert len({one.fingerprint for one in sets}) == 1 and sets[0].val.n_tokens > 0


def test_two_projects_may_share_a_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints: set[str] = set()
    for name in ("p", "q"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.txt").write_text(f"a text of {name} " * 200)
    for name in ("p", "q", "p", "q"):
        monkeypatch.chdir(tmp_path / name)
        fingerprints.add(prepare(DataConfig(corpus="text", source="in.txt", dir="../data")).fingerprint)
    assert len(fingerprints) == 2


def test_a_run_of_the_first_release_is_found(config: Build, corpus: Path) -> None:
    """Its signature was of the path; and not where the text is another since then."""
    old = make_run(config(), signature(config()))
    assert locate_run(config()) == old
    assert [one.path for one in plan_runs(old.parent, [Point(config(), {})])] == [old]
    folder = folder_by_path(config().data)
    shutil.move(prepare(config().data).folder, folder)
    assert locate_run(config()) == old and find_dataset_folder(resolve_source(config().data)) == folder
    os.utime(corpus, (1, 1))  # touched is not changed
    assert locate_run(config()) == old and (folder / SOURCE_FILE).exists()
    corpus.write_text(corpus.read_text()[::-1])
    assert locate_run(config()) != old
    relative = find_related_run(config())
    assert relative == (old, ["data.source_sha256"])


def test_a_run_of_the_first_release_is_found_from_another_path(
    config: Build, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of its text is in the folder that was prepared for it, whatever path that is named by."""
    old = make_run(config(), signature(config()))
    copy = shutil.copy(corpus, tmp_path / "copy.txt")
    assert locate_run(config(**{"data.source": str(copy)})) != old  # nothing says that it is the same text
    shutil.move(prepare(config().data).folder, folder_by_path(config().data))
    monkeypatch.chdir(tmp_path)
    other = config(**{"data.source": "copy.txt"})
    assert locate_run(other) == old and locate_run(config(**{"data.source": "copy.txt", "optimizer.lr": 1e-3})) != old
    assert [one.path for one in plan_runs(old.parent, [Point(other, {})])] == [old]
    with open_run(other) as run:
        assert run.path == old and any(one.startswith("data.source:") for one in run.changes)
        (old / "config.json").write_text(schema.to_json(resolve_digests(other)))  # as the start that continues it does
    assert locate_run(other) == locate_run(config()) == locate_run(config(**{"data.source": str(copy)})) == old
    copy.write_text(corpus.read_text()[::-1])
    assert locate_run(other) != old


def test_first_weights_count_by_content(config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nanoGPT has written others to the same path since, and where they are gone."""
    weights = tmp_path / "ckpt.pt"
    weights.write_bytes(b"some weights")
    built = resolve_digests(config(init_from=str(weights)))
    first = locate_run(built)
    copy = shutil.copy(weights, tmp_path / "copy.pt")
    monkeypatch.chdir(tmp_path)
    assert locate_run(config(init_from=str(copy))) == locate_run(config(init_from="./ckpt.pt")) == first
    by_path = locate_run(config(init_from="gone.pt"))
    assert by_path != first and config(init_from="gone.pt").init_from_sha256 is None
    first.mkdir(parents=True)
    (first / "config.json").write_text(schema.to_json(built))
    weights.write_bytes(b"other weights")
    assert locate_run(config(init_from=str(weights))) != first
    assert find_related_run(config(init_from=str(weights))) == (first, ["init_from_sha256"])
    with pytest.raises(BadCheckpoint, match=r"holds other weights now than init_from_sha256="):
        check_weights(built)
    weights.unlink()
    assert locate_run(config(init_from=str(weights))) == first


def test_a_run_of_the_first_release_with_weights_is_found(config: Build, tmp_path: Path) -> None:
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"some weights")
    built = config(init_from=str(weights))
    old = make_run(built, signature(built))
    shutil.move(prepare(built.data).folder, folder_by_path(built.data))
    assert locate_run(built) == old
    with open_run(resolve_digests(built)) as run:
        assert run.path == old and run.changes == []


def test_a_study_is_named_by_the_content_of_its_files(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(source: str) -> Path:
        words = [f"runs_dir={tmp_path}/runs", f"data.dir={tmp_path}/data", "data=text", "training.seed=1,2"]
        return plan_study(read_sweep("train", TrainConfig, [*words, f"data.source={source}"], multirun=True)).path

    monkeypatch.chdir(tmp_path)
    first = folder("corpus.txt")
    shutil.copy(corpus, tmp_path / "copy.txt")
    assert folder(str(corpus)) == folder("copy.txt") == first
    corpus.write_text(corpus.read_text()[::-1])
    assert folder("corpus.txt") != first


def test_a_source_that_is_gone_is_known_from_what_was_prepared(config: Build, corpus: Path) -> None:
    found, dataset = locate_run(config()), prepare(config().data)
    corpus.unlink()
    assert locate_run(config()) == found and prepare_if_small(config().data).fingerprint == dataset.fingerprint


def test_a_source_that_is_there_but_can_t_be_read_is_not_taken_for_the_prepared_one(
    config: Build, corpus: Path
) -> None:
    prepare_if_small(resolve_digests(config()).data)
    corpus.write_bytes(bytes([0x1F, 0x8B]) + b"no gzip")
    assert resolve_source(config().data).source_sha256 is None
    with pytest.raises(BadData):
        prepare_if_small(config().data)


@pytest.mark.parametrize("remake", [False, True])
def test_a_digest_that_was_given_is_kept_to(config: Build, corpus: Path, remake: bool) -> None:
    built = resolve_digests(config())
    before = prepare(built.data)
    corpus.write_text("something else " * 500)
    if remake:
        shutil.rmtree(before.folder)
        with pytest.raises(BadData, match=r"holds something else .* than data.source_sha256="):
            prepare(built.data)
    else:
        assert prepare(built.data).fingerprint == before.fingerprint


def test_precision_is_part_of_the_identity(config: Build) -> None:
    """But for the one that the device has anyway."""
    plain = locate_run(config())
    assert locate_run(config(**{"hardware.precision": "fp32"})) == plain
    assert locate_run(config(**{"hardware.precision": "bf16"})) != plain
    auto, cuda = {"hardware.device": "auto"}, {"hardware.device": "cuda"}
    assert locate_run(config(**auto)) == locate_run(config(**cuda)) == plain
    assert locate_run(config(**cuda, **{"hardware.precision": "bf16"})) == plain
    assert locate_run(config(**cuda, **{"hardware.precision": "fp32"})) != plain
    fp8 = {"hardware.fp8": True, "hardware.compile": True}
    assert locate_run(config(**cuda, **fp8)) != plain


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runs_that_were_made_in_a_precision_are_found(config: Build, precision: str) -> None:
    """The first release left it out of the signature: what the run noted counts."""
    old = make_run(resolve_digests(config()), signature(resolve_digests(config())), precision)
    asked = {other: config(**{"hardware.device": "auto", "hardware.precision": other}) for other in ("fp32", "bf16")}
    assert {other for other, built in asked.items() if locate_run(built) == old} == {precision}


def test_a_run_in_a_named_precision_is_that_of_a_device_which_has_it_anyway(config: Build) -> None:
    named = resolve_digests(config(**{"hardware.device": "auto", "hardware.precision": "fp32"}))
    run = make_run(named, signature(named))
    assert locate_run(config()) == run and locate_run(config(**{"hardware.device": "auto"})) != run


def test_token_files_are_checked_in_full_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tokens"
    folder.mkdir()
    ids = np.zeros(5_000_000, np.uint16)
    ids.tofile(folder / "train.bin")
    ids[:100].tofile(folder / "val.bin")
    config = DataConfig(corpus="text", source=str(folder), tokenizer="byte", dir=str(tmp_path / "data"))
    assert prepare_if_small(config).train.n_tokens == 5_000_000
    ids[4_300_000] = 256
    ids.tofile(folder / "train.bin")
    with pytest.raises(BadData, match=r"train.bin: id 256 at token 4300000, but the vocabulary has 256"):
        prepare_if_small(config)
    for name in ("train.bin", "val.bin"):
        os.utime(folder / name, (1, 1))
    monkeypatch.setattr("nanogpt.data.content.REMEMBER_BYTES", 1)
    monkeypatch.setattr("nanogpt.data.content.SETTLED_SECONDS", -1.0)
    with pytest.raises(BadData, match="id 256"):
        prepare_if_small(config)
    known = json.loads((tmp_path / "data" / CACHE_FILE).read_text())
    assert [known[str(folder / name)][5] for name in ("train.bin", "val.bin")] == [256, 0]
    with monkeypatch.context() as patched:
        patched.setattr("nanogpt.data.content.scan_tokens", None)  # it isn't read again
        with pytest.raises(BadData, match="id 256"):
            prepare_if_small(config)
    ids[4_300_000] = 7
    ids.tofile(folder / "train.bin")
    os.utime(folder / "train.bin", (1, 1))
    assert prepare_if_small(config).train.n_tokens == 5_000_000, (
        "other ids of the same size and time of writing are read"
    )


@pytest.mark.parametrize(("device", "made"), [("cpu", "bf16"), ("cuda", "fp32"), ("auto", "bf16")])
def test_a_study_in_another_precision_is_refused_before_anything_starts(config: Build, device: str, made: str) -> None:
    """Whether its points are finished or not; a precision that was named finds its own runs."""
    built = resolve_digests(config(**{"hardware.device": device}))
    run = make_run(built, signature(built), made)
    with pytest.raises(BadCheckpoint, match=rf"hardware.precision=auto: .* was trained in {made}"):
        check_precisions([PlannedRun(run, built)], here=True)
    check_precisions([PlannedRun(run, config(**{"hardware.device": "auto"}))], here=False)
    allowed = config(**{"hardware.device": device, "resume.allow_change": ["hardware.precision"]})
    check_precisions([PlannedRun(run, allowed)], here=True)
