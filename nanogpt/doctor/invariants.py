"""Properties of every model and training, checked with tiny ones on the user's device in fp32."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt.config import DoctorConfig, ModelConfig, TrainConfig
from nanogpt.data.batches import Batch
from nanogpt.data.prepare import prepare
from nanogpt.device import Compute, find_device
from nanogpt.doctor.finding import Check, Finding
from nanogpt.doctor.trainings import tiny_config, train_side_by_side
from nanogpt.errors import BadEnvironment
from nanogpt.generation.decode import SamplingParams, generate
from nanogpt.interop.export_config import to_hf_config
from nanogpt.interop.names import to_gpt2
from nanogpt.metrics_file import read_rows
from nanogpt.model.gpt import GPT
from nanogpt.model.kv_cache import KVCache
from nanogpt.run_directory import RunDirectory, locate_run
from nanogpt.training.state import build_state
from nanogpt.training.step import StepMetrics, train_step

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=97)
ROUNDING = {"cpu": 1e-4, "cuda": 2e-3, "mps": 2e-3}  # largest difference between logits of size 1
LOSSES = {"cpu": 1e-5, "cuda": 1e-3, "mps": 1e-3}  # nats; several GPUs multiply in TF32


def build_sharp_model(device: torch.device) -> GPT:
    """Return a model whose weights, biases and gains are random and large, so that mistakes show."""
    model, generator = GPT(MODEL).eval(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(device)


def random_ids(shape: tuple[int, int], device: torch.device, seed: int = 3) -> Tensor:
    return torch.randint(MODEL.vocab_size or 0, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def check_logits(config: DoctorConfig) -> Finding:
    """Compare logits with those of transformers' GPT-2 with the same weights."""
    if find_spec("transformers") is None:
        return Finding("note", "transformers is not installed", "pip install 'transformers>=4.57' to compare")
    import transformers

    device = find_device(config.device, "device")
    model, ids = build_sharp_model(device), random_ids((3, 16), device)
    settings = {key: value for key, value in to_hf_config(MODEL).items() if key not in ("architectures", "torch_dtype")}
    gpt2_config: Any = transformers.GPT2Config(**settings, bos_token_id=None, eos_token_id=None)
    theirs: Any = transformers.GPT2LMHeadModel(gpt2_config).eval()
    weights = to_gpt2({name: p.detach().cpu() for name, p in model.named_parameters()}, MODEL)
    theirs.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    with torch.inference_mode():
        return compare_tensors(model(ids), theirs.to(device)(ids).logits, ROUNDING[device.type], "transformers' logits")


def check_cache(config: DoctorConfig) -> Finding:
    """Compare decoding with and without a cache, position by position and beyond the context's end."""
    device = find_device(config.device, "device")
    model, ids = build_sharp_model(device), random_ids((2, 16), device)
    cache = KVCache(MODEL, 2, device, torch.float32)
    with torch.inference_mode():
        whole = model(ids)
        parts = [ids[:, :5], *(ids[:, t : t + 1] for t in range(5, 16))]
        steps = [model.next_logits(part, cache) for part in parts]
        found = compare_tensors(torch.stack(steps, 1), whole[:, 4:], ROUNDING[device.type], "logits without a cache")
        text = ids[0, :5].tolist()
        greedy = SamplingParams(temperature=0.0)
        drawn = [token for (token,) in generate(model, [text], 20, greedy, [torch.Generator(device)])]
        for number, token in enumerate(drawn):
            seen = (text + drawn[:number])[-MODEL.block_size :]
            last = model(torch.tensor([seen], device=device))[0, -1]
            if float(last.max() - last[token]) > ROUNDING[device.type]:  # either of two equally likely tokens is right
                raise BadEnvironment(f"token {number} of 20 with a cache is not the likeliest without")
    return found


def check_accumulation(config: DoctorConfig) -> Finding:
    """Compare steps with micro-batches of 1, 2 and 4 with steps of the whole batch, dropout included."""
    device = find_device(config.device, "device")
    with temporary_folder() as folder:
        built = tiny_config(folder, "micro")
    whole, worst = train_four_steps(built, device, 8), 0.0
    for size in (1, 2, 4):
        for a, b in zip(whole, train_four_steps(built, device, size), strict=True):
            worst = max(worst, abs(a.loss - b.loss), abs(a.grad_norm - b.grad_norm) / (1 + a.grad_norm))
    return check_within(worst, LOSSES[device.type], "losses of the whole batch")


def train_four_steps(config: TrainConfig, device: torch.device, size: int) -> list[StepMetrics]:
    """Train four steps in micro-batches of `size` windows."""
    config = config.with_micro_batch_size(size)
    state = build_state(config, config.model.with_vocab(MODEL.vocab_size or 0), Compute(device, "fp32", ""))
    found: list[StepMetrics] = []
    for step in range(4):
        windows = random_ids((8, config.model.block_size + 1), device, step)
        keys = torch.arange(8 * step, 8 * step + 8, device=device)
        cuts = [slice(first, first + size) for first in range(0, 8, size)]
        parts = [Batch(windows[cut, :-1].contiguous(), windows[cut, 1:].contiguous(), keys[cut]) for cut in cuts]
        found.append(train_step(state, parts, config).wait())
    return found


def check_ranks(config: DoctorConfig) -> Finding:
    """Compare the losses of one and two ranks; on the CPU if there are fewer than two GPUs."""
    device = find_device(config.device, "device")
    kind = "cuda" if device.type == "cuda" and torch.cuda.device_count() > 1 else "cpu"
    hardware = {"device": kind, "precision": "fp32", "threads": 1}
    with temporary_folder() as folder:
        one, two = (tiny_config(folder, name, hardware=hardware) for name in ("one", "two"))
        prepare(one.data)
        train_side_by_side(folder, (one, 1), (two, 2))
        rows = [read_rows(locate_run(built) / "metrics.jsonl") for built in (one, two)]
    if len(rows[0]) != len(rows[1]):
        raise BadEnvironment(f"{len(rows[0])} rows of metrics on one rank and {len(rows[1])} on two")
    worst = max(abs(a.get(key, 0) - b.get(key, 0)) for a, b in zip(*rows, strict=True) for key in ("loss", "val_loss"))
    how = "gloo, on the CPU" if kind == "cpu" else "nccl"
    return check_within(worst, LOSSES[kind], f"losses of one rank ({how})")


def check_resume(config: DoctorConfig) -> Finding:
    """Compare the bits of metrics, weights and moments after six steps, and after three and three in a new process."""
    device = find_device(config.device, "device")
    hardware = {"device": config.device, "threads": 1, "deterministic": device.type == "cuda"}
    with temporary_folder() as folder:
        whole, parts = (tiny_config(folder, name, hardware=hardware) for name in ("whole", "parts"))
        prepare(whole.data)
        train_side_by_side(folder, (whole, 1), (parts.model_copy(update={"stop_at_fraction": 0.5}), 1))
        train_side_by_side(folder, (parts, 1))
        expected, found = read_outcome(whole), read_outcome(parts)
    if differing := [name for name in expected if expected[name] != found.get(name)]:
        raise BadEnvironment(f"after a stop these differ: {', '.join(differing)}")
    return Finding("ok", f"stopped after 3 of 6 steps and continued: {', '.join(expected)} to the bit")


@contextmanager
def temporary_folder() -> Generator[Path, None, None]:
    with tempfile.TemporaryDirectory(prefix="nanogpt-doctor-") as name:
        yield Path(name)


def read_outcome(config: TrainConfig) -> dict[str, bytes]:
    """Return the content of the files of a training that must not change, by name."""
    run = RunDirectory(locate_run(config))
    last = run.checkpoints.path(run.checkpoints.steps()[-1])
    files = [run.metrics.path, last / "model.safetensors", last / "optimizer.safetensors"]
    return {path.name: path.read_bytes() for path in files}


def compare_tensors(found: Tensor, expected: Tensor, limit: float, what: str) -> Finding:
    """Raise BadEnvironment if two tensors differ by more than rounding, or if all numbers are zero."""
    found, expected = found.cpu(), expected.cpu()
    if not expected.any():
        raise BadEnvironment(f"{what} are all zero: the device computes nothing")
    worst = (found - expected).abs().max() / expected.abs().max().clamp(min=1.0)
    return check_within(float(worst), limit, what)


def check_within(worst: float, limit: float, what: str) -> Finding:
    """Raise BadEnvironment for a difference above the limit, or NaN."""
    if not worst <= limit:
        raise BadEnvironment(f"differ by {worst:.2g} from {what}; rounding makes at most {limit:.0e}")
    return Finding("ok", f"the same as {what}, within {worst:.1e}")


CODE = "if device=cpu passes, the device's driver or torch is at fault; else the code; in a checkout: python -m pytest"
CHECKS = {
    "logits": Check(check_logits, f"{CODE} tests/model tests/interop"),
    "cache": Check(check_cache, f"{CODE} tests/generation/test_decode.py"),
    "accumulation": Check(check_accumulation, f"{CODE} tests/training/test_step.py"),
    "ranks": Check(check_ranks, f"hardware.devices=1 trains on one rank; {CODE} tests/distributed/test_ranks.py"),
    "resume": Check(check_resume, f"don't rely on restarts until this passes; {CODE} tests/training/test_run.py"),
}
