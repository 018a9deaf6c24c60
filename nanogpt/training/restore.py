"""Resume: rank 0 reads the newest good checkpoint and checks that it fits; every rank receives it."""

import logging
from pathlib import Path
from typing import Any

from nanogpt import tokenizer as tokenizers
from nanogpt.checkpoint import LoadedCheckpoint, StateFile
from nanogpt.comparability import agree_in_nats
from nanogpt.config import TrainConfig
from nanogpt.data.dataset import Dataset
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import BadCheckpoint, BadData, one_line
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.evaluation.measured import describe_measurement
from nanogpt.files import check_regular
from nanogpt.measurement import Measurement, to_dict
from nanogpt.run_directory import RunDirectory
from nanogpt.training.state import TrainState

logger = logging.getLogger(__name__)


def restore(state: TrainState, dataset: Dataset, run: RunDirectory | None, config: TrainConfig) -> bool:
    """Restore the newest good checkpoint, and cut the metrics to its step. Returns whether there was one.

    Raises BadCheckpoint and BadData, on every rank, if the run cannot be continued.
    """
    state.data_fingerprint, state.data_digests = dataset.fingerprint, dataset.files
    loaded = load_checkpoint(state, dataset, run, config)
    if loaded is not None:
        state.restore(loaded)
    if run:
        if loaded is not None:
            run.checkpoints.set_aside(after=state.step)
        rewind_metrics(run, state, loaded)
        run.timing.rewind(state.step if loaded else -1)
    return loaded is not None


def rewind_metrics(run: RunDirectory, state: TrainState, loaded: LoadedCheckpoint | None) -> None:
    """Cut metrics.jsonl to the checkpoint. Damage is logged and noted for provenance.json."""
    try:
        check_regular(run.metrics.path)
    except FileNotFoundError:
        pass  # lost rows are reported below
    except OSError as error:
        raise BadCheckpoint(f"{one_line(run.metrics.path)}: {error.strerror}") from None
    record = StateFile.model_validate(loaded.state).metrics if loaded else None
    found = run.metrics.rewind(state.step if loaded else -1, state.last_eval_step, record)
    if found.problem:
        run.notes.append(f"metrics.jsonl at step {state.step}: {found.problem}")
        logger.warning(f"{one_line(run.metrics.path)}: {found.problem}")


def load_checkpoint(
    state: TrainState, dataset: Dataset, run: RunDirectory | None, config: TrainConfig
) -> LoadedCheckpoint | None:
    """Return the checkpoint to continue from, on every rank; None for a new run."""
    found: list[LoadedCheckpoint] = []

    def choose() -> dict[str, Any] | None:
        assert run is not None, "rank 0 has the directory"
        if strays := run.checkpoints.list_foreign_entries():
            names = ", ".join(one_line(name) for name in strays[:5]) + (", …" if len(strays) > 5 else "")
            logger.warning(f"{one_line(run.checkpoints.folder)}: not checkpoints of this program, ignored: {names}")
        loaded, bad = run.checkpoints.load_newest()
        for warning in bad:
            logger.warning(f"{warning}; set aside, an older checkpoint is used")
        if loaded is None:
            return None
        allowing = allow_fork(config, run, loaded, dataset)
        check_same_data(loaded, dataset, allowing)
        check_arithmetic(loaded, state, allowing)
        found.append(loaded)
        return {"path": str(loaded.path), "state": loaded.state}

    about = state.group.broadcast_from_rank0(choose)
    if about is None or state.group.world == 1:
        return found[0] if found else None
    return broadcast_checkpoint(found[0] if found else None, about, state.group)


def record_measurement(state: TrainState, loss: LossEvaluation, dataset: Dataset, config: TrainConfig) -> None:
    """Record what this start evaluates on. Drops the best loss so far if it was measured on something else."""
    before = Measurement(**state.measurement)
    state.measurement = state.group.broadcast_from_rank0(
        lambda: to_dict(describe_measurement(loss, dataset, config.hardware.fp8))
    )
    same = agree_in_nats(before, Measurement(**state.measurement))
    if same is None:  # the checkpoint did not record its windows
        same = "eval.tokens" not in config.resume.allow_change
    if state.best is not None and not same:
        state.best = None
        if state.group.is_rank0:
            logger.info("note    the evaluation has changed, so the best validation loss is looked for anew")


def allow_fork(config: TrainConfig, run: RunDirectory, loaded: LoadedCheckpoint, dataset: Dataset) -> TrainConfig:
    """Return the config; at the first step of a fork it may change data and precision.

    Raises BadCheckpoint for a fork with another tokenizer, because its token ids have other meanings.
    """
    parent = run.origin.forked_from if run.origin else None
    if not config.resume.fork or parent is None or parent.step != loaded.state["step"]:
        return config
    theirs = run.path / tokenizers.FILE
    if theirs.exists() and tokenizers.fingerprint(tokenizers.load(run.path)) != tokenizers.fingerprint(
        dataset.tokenizer
    ):
        raise BadCheckpoint(f"{one_line(parent.path)}: was trained with another tokenizer than this data's; can't fork")
    allowed = (*config.resume.allow_change, "data", "hardware.precision")
    return config.model_copy(update={"resume": config.resume.model_copy(update={"allow_change": allowed})})


def broadcast_checkpoint(mine: LoadedCheckpoint | None, about: dict[str, Any], group: ProcessGroup) -> LoadedCheckpoint:
    """Return rank 0's checkpoint on every rank. Only rank 0 needs access to its files."""
    model, optimizer = group.broadcast_tensors(mine and mine.model), group.broadcast_tensors(mine and mine.optimizer)
    return LoadedCheckpoint(Path(about["path"]), model, optimizer, about["state"])


def check_same_data(loaded: LoadedCheckpoint, dataset: Dataset, config: TrainConfig) -> None:
    """Raise BadData, naming the first file that differs, unless the data is that of the run or a change is allowed."""
    theirs = loaded.state.get("data")
    if theirs == dataset.fingerprint:
        return
    if "data" in config.resume.allow_change:
        logger.warning(
            f"continuing on other data (fingerprint {dataset.fingerprint[:12]}, was {one_line(theirs)[:12]})"
        )
        return
    before: dict[str, str] = loaded.state.get("files") or {}
    names = [name for name in sorted({*before, *dataset.files}) if before.get(name) != dataset.files.get(name)]
    first = f", first differing file {one_line(names[0])}" if before and names else ""
    raise BadData(
        f"{one_line(dataset.folder)}: not the data this run was trained on (fingerprint {dataset.fingerprint[:12]}, "
        f"was {one_line(theirs)[:12]}{first}); new_attempt=true starts another, resume.allow_change=[data] goes on"
    )


def check_arithmetic(loaded: LoadedCheckpoint, state: TrainState, config: TrainConfig) -> None:
    """Raise BadCheckpoint for another precision, unless allowed. Warn of changes that affect only rounding."""
    before: dict[str, Any] = loaded.state.get("arithmetic") or {}
    now = state.arithmetic
    if before.get("precision") != now["precision"] and "hardware.precision" not in config.resume.allow_change:
        raise BadCheckpoint(
            f"hardware.precision={now['precision']}: the run was trained in {one_line(before.get('precision'))}; give "
            "that, or resume.allow_change=[hardware.precision]"
        )
    before = {"fp8": False, "fused": False, **before}  # older checkpoints lack these
    then = {key: before.get(key, value) for key, value in now.items()}  # older checkpoints lack some keys
    changed = [f"{key} {one_line(then[key])} -> {value}" for key, value in now.items() if then[key] != value]
    if changed:
        logger.warning(f"{', '.join(changed)}: the same data in the same order, but rounding can differ")
