"""Text and configs of runs that take half a second."""

from pathlib import Path

from nanogpt.config import TrainConfig
from nanogpt.schema import from_dict


def write_corpus(path: Path) -> Path:
    """A text file of 15,000 characters with some structure to learn."""
    words = ("alpha", "beta", "gamma", "delta", "epsilon")
    path.write_text("".join(f"{words[i * i % 5]} {words[i * 7 % 5]} {i}\n" for i in range(900)))
    return path


def tiny_config(folder: Path, corpus: Path, **changes: object) -> TrainConfig:
    """20 steps of 8 sequences with every kind of event: `tiny_config(folder, corpus, **{"optimizer.lr": 1e-3})`."""
    values: dict[str, object] = {
        "runs_dir": str(folder / "runs"),
        "model.name": "test",
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.block_size": 16,
        "model.dropout": 0.1,
        "data.name": "test",
        "data.corpus": "text",
        "data.source": str(corpus),
        "data.tokenizer": "char",
        "data.val_fraction": 0.1,
        "data.dir": str(folder / "data"),
        "optimizer.lr": 1e-2,
        "training.batch_tokens": 128,
        "training.steps": 20,
        "eval.every": 5,
        "eval.tokens": 256,
        "hardware.device": "cpu",
        "hardware.threads": 1,
        "tracking.log_every": 2,
        "tracking.sample_tokens": 8,
        "checkpoint.every": 4,
    }
    nested: dict[str, dict[str, object]] = {}
    for key, value in (values | changes).items():
        group, _, leaf = key.rpartition(".")
        if group:
            nested.setdefault(group, {})[leaf] = value
        else:
            nested[leaf] = value  # type: ignore[assignment]
    return from_dict(TrainConfig, nested)
