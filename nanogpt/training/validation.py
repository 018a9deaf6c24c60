"""Checks before a training that config, data, ranks and machine fit each other."""

import logging
from typing import Any

from nanogpt import schema
from nanogpt.config import ModelConfig, TrainConfig
from nanogpt.data.batches import TrainBatches
from nanogpt.data.dataset import Dataset, expected_vocab_size
from nanogpt.device import Compute, memory_bytes
from nanogpt.distributed.env import RankEnv
from nanogpt.distributed.process_group import ProcessGroup
from nanogpt.errors import BadData, BadInput
from nanogpt.estimates.flops import parameter_counts
from nanogpt.estimates.memory import estimate_memory
from nanogpt.formatting import format_count
from nanogpt.output_paths import check_output_folder
from nanogpt.reference import load_references
from nanogpt.run_directory import locate_run, resolve_config
from nanogpt.training.state import TrainState

logger = logging.getLogger(__name__)


def check_ranks(config: TrainConfig, rank_env: RankEnv) -> None:
    """Raise BadInput unless the ranks that were started fit the config."""
    devices = config.hardware.devices
    if devices is not None and devices != rank_env.local_world:
        raise BadInput(f"hardware.devices={devices}: but {rank_env.local_world} ranks were started on this machine")
    nodes = config.hardware.nodes
    if nodes is not None and nodes * rank_env.local_world != rank_env.world:
        raise BadInput(
            f"hardware.nodes={nodes}: but {rank_env.world} ranks were started, {rank_env.local_world} on this machine"
        )
    schema.run_check(lambda: config.check_ranks_divide_batch(rank_env.world, "WORLD_SIZE"))
    check_fsdp_ranks(config, rank_env.world)


def check_paths(config: TrainConfig) -> None:
    """Check, before data is prepared, that run directories can be written, and that the run to continue and the
    reference exist.

    Raises BadInput, BadEnvironment.
    """
    check_output_folder("runs_dir", config.runs_dir)
    if config.resume.run is not None:
        locate_run(config)
    if config.tracking.reference not in (None, "auto"):
        load_references(config.tracking.reference, config.runs_dir, "tracking.reference")


def resolve_identity(config: TrainConfig, group: ProcessGroup) -> TrainConfig:
    """Return the config with the digests that identify its run. Only rank 0 reads files.

    An existing run keeps its `eval.fit`, and so the steps at which it is evaluated.
    """

    def read() -> list[Any]:
        found = resolve_config(config)
        stored = locate_run(found) / "config.json"
        fit = schema.read_config(TrainConfig, stored).eval.fit if stored.exists() else found.eval.fit
        return [found.data.source_sha256, found.init_from_sha256, found.resume.parent, found.resume.step, fit]

    digest, weights, parent, step, fit = group.broadcast_from_rank0(read)
    data = config.data.model_copy(update={"source_sha256": digest})
    resume = config.resume.model_copy(update={"parent": parent, "step": step})
    evaluation = config.eval.model_copy(update={"fit": fit})
    return config.model_copy(update={"data": data, "resume": resume, "eval": evaluation, "init_from_sha256": weights})


def check_fsdp_ranks(config: TrainConfig, world: int) -> None:
    """Raise BadInput for fsdp on a single rank."""
    if config.hardware.strategy == "fsdp" and world == 1:
        raise BadInput(
            "hardware.strategy=fsdp: needs two ranks or more, and there is one; "
            "give hardware.devices, or start it with torchrun"
        )


def check_horizon_ahead(state: TrainState) -> None:
    """Raise BadInput if the run is past its last step already."""
    if state.step > state.total_steps:
        raise BadInput(
            f"the horizon of training.steps, tokens, tokens_per_param or flops is step {state.total_steps:,}, "
            f"but the run is at step {state.step:,} already"
        )


def fit_model_to_data(config: TrainConfig, dataset: Dataset) -> ModelConfig:
    """Return the model with the vocabulary of the data. Raises BadData if model.vocab_size is too small."""
    model = config.model.with_vocab(dataset.vocab_size)
    assert model.vocab_size is not None
    if model.vocab_size < dataset.vocab_size:
        raise BadData(f"model.vocab_size={model.vocab_size}: the data needs at least {dataset.vocab_size}")
    if model.vocab_size > dataset.vocab_size + 64:
        logger.warning(f"model.vocab_size={model.vocab_size}, but the data has only {dataset.vocab_size} ids")
    return model


def expected_model(config: TrainConfig) -> tuple[ModelConfig, bool]:
    """Return the model with the vocabulary size expected before data is opened, and whether that is certain."""
    vocab_size, sure = expected_vocab_size(config.data)
    return config.model.with_vocab(vocab_size), sure or config.model.vocab_size is not None


def check_state_fits(config: TrainConfig, compute: Compute, world: int) -> None:
    """Raise BadInput if the training state alone does not fit into the memory of the device."""
    model, _ = expected_model(config)
    n_params = parameter_counts(model)["total"]
    memory, there = estimate_memory(config, model, "fp32", 1, world=world), memory_bytes(compute.device)
    on_cpu = compute.device.type == "cpu"
    needed = memory.state + memory.optimizer_step + (memory.checkpoint_copy if on_cpu else 0)
    what = "weights, gradients, optimizer state" + (" and its step" if memory.optimizer_step else "")
    what += " and the copy that is saved" if on_cpu else ""
    if there and needed > there:
        raise BadInput(
            f"model.n_layer={model.n_layer} model.n_embd={model.n_embd}: {format_count(n_params)} parameters need "
            f"{format_count(needed, 'G')}B for {what}; {compute.device} has {format_count(there, 'G')}B"
        )


def warn_of_short_shards(batches: TrainBatches, dataset: Dataset) -> None:
    """Warn if most of the text is in files too short for a window, because windows do not cross files."""
    reached = batches.sampler.n_windows * (batches.block_size if batches.sampler.order == "permutation" else 1)
    if reached < 0.8 * dataset.train.n_tokens and len(dataset.train.shards) > 1:
        share = 100 * reached / dataset.train.n_tokens
        logger.warning(f"only {share:.0f} % of the training tokens are in files long enough for model.block_size")
