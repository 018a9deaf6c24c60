"""Estimated memory of training and size of checkpoints in bytes, computed from the model's shape.

The estimate is the larger of the end of a forward pass and the optimizer's step. It includes weights, gradients,
optimizer state, what autograd saves of a micro-batch (to a few per cent, tests/estimates/test_memory.py), the loss with
its chunk of logits, temporaries of the step, the copy that a checkpoint is written from and, on a CPU, the process. It
leaves out fragmentation, workspaces of kernels, a GPU's context, and the few tensors of the layer that the backward
pass is computing. A compiled model saves as much, or less with dropout.

T time, C channels, F channels inside the MLP, H heads, K heads of keys and values, D head size, L layers, P vocabulary
padded to a multiple. Sizes are per position and of all layers unless they say otherwise.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from nanogpt.config import OPTIMIZERS, ModelConfig, Precision, Rule, TrainConfig
from nanogpt.estimates.flops import conv_widths, mlp_shapes, parameter_counts, qkv_width
from nanogpt.optim.declaration import FP32, Kind, Shape

CHUNK_BYTES = 128 * 2**20  # fp32 logits per chunk; on a CPU 64 MiB takes 8 % longer, 256 MiB 3 % less
GPU_CHUNK_BYTES = 512 * 2**20  # on a GPU, where each chunk reads and writes the gradient of the head's matrix
PROCESS = 400 * 10**6  # Python, torch, sampling and evaluation; measured on Linux: docs/benchmarks.md
WEIGHTS_AT_A_TIME = 2**28  # attention weights with dropout that a GPU holds at a time, in whole sequences
WEIGHT_BYTES = 16  # per attention weight, in the backward pass; measured: docs/speed.md
KINDS: dict[str, Kind] = {"token embedding": "embedding", "position embedding": "embedding", "head": "head"}
USABLE_SHARE = 0.9  # of the memory, for the estimate; the rest is for driver, workspaces and fragmentation


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, by kind; all but `checkpoint_copy` are on its device."""

    weights: int
    gradients: int
    optimizer_state: int
    activations: int
    """Saved for the backward pass of a micro-batch; in bf16 and fp16 including the weights in that precision."""
    loss: int
    """Features and their gradient, the gradient of the head's matrix, a chunk of logits."""
    transient: int
    """Temporaries of attention with dropout, freed before the loss is computed."""
    optimizer_step: int
    """Temporaries of the optimizer's step, when activations and loss are freed."""
    process: int
    """The program itself, on a CPU; on a GPU 0."""
    checkpoint_copy: int
    """Copy of all weights and optimizer state, which a checkpoint is written from; in host memory, on rank 0 only."""

    @property
    def state(self) -> int:
        """Bytes that do not depend on the micro-batch."""
        return self.weights + self.gradients + self.optimizer_state

    @property
    def total(self) -> int:
        """Bytes on the rank's device."""
        return self.state + max(self.activations + max(self.loss, self.transient), self.optimizer_step) + self.process

    def host_bytes(self, ranks: int = 1) -> int:
        """Return the host memory that `ranks` on a CPU take together."""
        return ranks * self.total + self.checkpoint_copy

    def json_fields(self) -> dict[str, int]:
        """Return what `format=json` shows."""
        return {f"{kind}_bytes": count for kind, count in asdict(self).items()} | {"total_bytes": self.total}


def estimate_training_memory(
    config: ModelConfig,
    precision: Precision,
    sequences: int,
    gpu: bool = False,
    rule: Rule = "adamw",
    recompute: bool = False,
    shards: int = 1,
) -> Memory:
    """Estimate the memory for a micro-batch of `sequences`. Autocast leaves softmax in fp32 on a GPU, not on a CPU.

    With `recompute` only the input of each block is saved, and all tensors of the block in its backward pass. With
    several `shards` a rank holds one, and gathered weights: those outside the blocks, and of two blocks.
    """
    n_params = parameter_counts(config)["total"]
    size = activation_size(precision)
    gathered = 0 if shards == 1 else gathered_count(config)
    return Memory(
        weights=FP32 * (-(-n_params // shards) + gathered),
        gradients=FP32 * (-(-n_params // shards) + gathered),
        optimizer_state=-(-state_bytes(config, rule) // shards),
        activations=activation_bytes(config, size, sequences, gpu, recompute),
        loss=loss_bytes(config, size, sequences, gpu),
        transient=transient_bytes(config, size, sequences, gpu, recompute),
        optimizer_step=OPTIMIZERS[rule].temporary_bytes(hidden_matrices(config)),
        process=0 if gpu else PROCESS,
        checkpoint_copy=checkpoint_bytes(config, rule),
    )


def activation_size(precision: Precision) -> int:
    """Return the bytes of an element in matrix products."""
    return {"fp32": FP32, "bf16": 2, "fp16": 2}[precision]


def gathered_count(config: ModelConfig) -> int:
    """Return the parameters outside the blocks and of two blocks."""
    whole, shorter = (
        parameter_counts(config.model_copy(update={"n_layer": layers}))["total"] for layers in (config.n_layer, 0)
    )
    return shorter + 2 * (whole - shorter) // max(1, config.n_layer)


def state_bytes(config: ModelConfig, rule: Rule) -> int:
    """Return the bytes of an optimizer's state."""
    return sum(OPTIMIZERS[rule].state_bytes(kind, shape) for kind, shape in parameter_shapes(config))


def parameter_shapes(config: ModelConfig) -> Iterator[tuple[Kind, Shape]]:
    """Yield the kind and shape of each parameter, all vectors as one."""
    counts, C = parameter_counts(config), config.n_embd
    vectors = counts["total"]
    for name, kind in KINDS.items():
        if name in counts:
            vectors -= counts[name]
            yield kind, (counts[name] // C, C)
    for rows, cols in hidden_matrices(config):
        vectors -= rows * cols
        yield "matrix", (rows, cols)
    yield "vector", (vectors,)


def hidden_matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """Return (rows, cols) of every weight of attention and MLP."""
    C = config.n_embd
    layer = [(qkv_width(config), C), (C, C), *((n_out, n_in) for n_in, n_out in mlp_shapes(config))]
    return config.n_layer * layer


def checkpoint_bytes(config: ModelConfig, rule: Rule = "adamw") -> int:
    """Return the bytes of weights and optimizer state on disk, without some kB of headers and sampler state."""
    return FP32 * parameter_counts(config)["total"] + state_bytes(config, rule)


def estimate_memory(
    config: TrainConfig, model: ModelConfig, precision: Precision, sequences: int, gpu: bool = False, world: int = 1
) -> Memory:
    """Estimate the memory of one of `world` ranks that train a config."""
    rule, recompute = config.optimizer.name, config.hardware.activation_checkpointing
    return estimate_training_memory(model, precision, sequences, gpu, rule, recompute, config.shards(world))


def largest_micro_batch(sizes: Iterable[int], available: float, needed: Callable[[int], float]) -> int | None:
    """Return the largest of `sizes`, in sequences, that needs at most `available` bytes, or None."""
    return max((n for n in sizes if needed(n) <= available), default=None)


def activation_bytes(config: ModelConfig, size: int, sequences: int, gpu: bool = False, recompute: bool = False) -> int:
    """Return the bytes that autograd saves of a micro-batch, with matrix products in elements of `size` bytes."""
    T, C, L, D = config.block_size, config.n_embd, config.n_layer, config.head_size
    rms, gains = not config.norm_subtracts_mean, config.norm_affine
    # A norm saves its input and statistics, RMSNorm also what the gains multiply.
    norm = FP32 * C + (FP32 * (C * gains + 1) if rms else 2 * FP32)
    masks = C if config.dropout else 0  # a byte per element
    ids = 8
    block = 2 * norm + 2 * masks + attention_bytes(config, size, gpu) + size * mlp_channels(config)
    convolved = sum(
        (size if place == "qkv" else FP32) * width
        for place, width in zip(config.conv, conv_widths(config), strict=True)
    )
    block += convolved
    whole = 1 if recompute else L  # blocks with all tensors saved, their input included
    position = ids + masks + norm + whole * block + (L - whole) * FP32 * C
    once = whole * T * T if config.dropout and not gpu else 0  # the causal mask
    once += whole * sequences * config.conv_history * convolved
    if config.is_rotary:  # cosines and sines, shared by all layers, unless copied in half precision
        once += 2 * FP32 * T * D if size == FP32 or recompute else 0
        once += whole * 4 * size * T * D if size != FP32 else 0
    return sequences * T * position + copy_bytes(config, size) + once


def copy_bytes(config: ModelConfig, size: int) -> int:
    """Return the bytes of the layers' matrices in half precision."""
    return 0 if size == FP32 else size * config.n_layer * matrix_elements(config)


def attention_bytes(config: ModelConfig, size: int, gpu: bool) -> int:
    """Return what one attention layer saves: its input, all forms of queries, keys and values, and its result.

    Fused kernels save one number per row; those of a GPU, in half precision, share keys and values of a group. With
    dropout a CPU saves all attention weights; a GPU recomputes them.
    """
    T, C, H, kv = config.block_size, config.n_embd, config.n_head, config.kv_heads * config.head_size
    fused_groups = gpu and size != FP32 and not config.dropout
    repeated, changed = config.kv_heads < H and not fused_groups, config.qk_norm or config.is_rotary
    saved = size * C  # the input
    if config.dropout and not gpu:
        saved += 3 * size * C + H * T * (2 * size + 1)  # softmax, dropout mask, masked weights
        whole = False
    else:
        saved += size * C if changed else 0
        saved += 2 * size * C if repeated else size * kv if changed else 0
        whole = not repeated or not changed  # a view of all queries, keys and values is saved
    if not config.dropout:
        saved += FP32 * H + (size * C if config.qk_norm else 0)  # and the result with its dimensions in another order
    if config.qk_norm:  # always in fp32: results, statistics, and copies of inputs that are not fp32
        results = FP32 * (C + kv) if config.norm_affine else 0
        saved += results + FP32 * (H + config.kv_heads) + (0 if size == FP32 else FP32 * (C + kv))
        whole = whole or size == FP32
    return saved + size * C + (size * qkv_width(config) if whole else 0)


def transient_bytes(config: ModelConfig, size: int, sequences: int, gpu: bool, recompute: bool = False) -> int:
    """Return the temporaries of attention with dropout.

    On a CPU they are the weights before their cast to the precision of products, or the words of the dropout mask; on a
    GPU the recomputed weights of some sequences in one layer, of all where `recompute` does it, and their gradients.
    """
    if not config.dropout:
        return 0
    weights = config.n_head * config.block_size**2
    if gpu:
        together = sequences if recompute else min(sequences, sequences_at_a_time(config.n_head, config.block_size))
        return WEIGHT_BYTES * weights * together
    return sequences * weights * (max(2 * size, 5) - size)


def sequences_at_a_time(n_head: int, length: int) -> int:
    """Return the number of sequences for which a GPU holds attention weights with dropout at the same time."""
    return max(1, WEIGHTS_AT_A_TIME // (n_head * length**2))


def mlp_channels(config: ModelConfig) -> int:
    """Return the elements that an MLP saves: its input, the input and result of the activation, and of a gate."""
    return config.n_embd + (4 if config.is_gated else 2) * config.mlp_width


def matrix_elements(config: ModelConfig) -> int:
    """Return the elements of one layer's matrices, which half precision copies."""
    C = config.n_embd
    return C * (qkv_width(config) + C) + sum(n_in * n_out for n_in, n_out in mlp_shapes(config))


def chunk_rows(vocabulary: int, gpu: bool) -> int:
    """Return the rows of logits per chunk of the loss: on a GPU 128 times a power of two."""
    if not gpu:
        return max(1, CHUNK_BYTES // (FP32 * vocabulary))
    return max(128, 2 ** ((GPU_CHUNK_BYTES // (FP32 * vocabulary)).bit_length() - 1))


def loss_bytes(config: ModelConfig, size: int, sequences: int, gpu: bool = False) -> int:
    """Return the bytes of features, of the head's gradient and of a chunk of logits (nanogpt/model/loss.py).

    In half precision the head's matrix and the chunk exist in both precisions. A compiled loss takes less.
    """
    vocabulary, C = config.padded_vocab_size, config.n_embd
    positions = sequences * config.block_size
    logits = min(positions, chunk_rows(vocabulary, gpu)) * vocabulary
    half = 0 if size == FP32 else size * (vocabulary * C + logits)
    slopes = 0 if config.logit_softcap is None else FP32 * logits
    return FP32 * (2 * positions * C + vocabulary * C + logits) + half + slopes
