"""Record what the validation losses of a run were measured on, and read it back from the run directory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanogpt import tokenizer as tokenizers
from nanogpt.config import TrainConfig
from nanogpt.errors import LabError
from nanogpt.files import from_json, read_bytes
from nanogpt.schema import signature_fields

MEASUREMENT_KEY = "measurement"  # in a start of provenance.json and in a checkpoint's state.json


@dataclass(frozen=True)
class RecordedMeasurement:
    """Facts about its measurement that a run records. None: not recorded."""

    tokenizer: str | None = None
    """Digest of the tokenizer's specification."""
    vocab_size: int | None = None
    windows: str | None = None
    """Digest of the evaluated windows: their length and their token ids, in order."""
    text: str | None = None
    """Digest of the whole validation text, which does not depend on the tokenizer."""
    coverage: float | None = None
    """Fraction of that text's bytes that the windows predict."""
    data: str | None = None
    """Fingerprint of the data set, training split included: all that earlier versions recorded."""
    precision: str | None = None
    """`fp32`, or `fp32 then bf16` for a run that was continued in another precision."""
    fp8: bool | None = None


@dataclass(frozen=True)
class Measurement(RecordedMeasurement):
    """Recorded facts, and the config's values, by which runs that recorded nothing are compared."""

    block_size: int | None = None
    eval_tokens: int | None = None
    source: str = ""
    """Digest of the config's data section without the keys of the tokenizer."""
    tokenizer_name: str = ""
    asked_vocab_size: int | None = None
    source_name: str = field(default="", compare=False)
    """The data source as the config spells it, for messages."""

    @property
    def tokenizer_label(self) -> str:
        size = self.vocab_size or self.asked_vocab_size
        return self.tokenizer_name + ("" if size is None else f" {size}")


def to_dict(recorded: RecordedMeasurement) -> dict[str, Any]:
    """Return the facts that a run records, as JSON values."""
    return {name: value for name, value in asdict(recorded).items() if name in RecordedMeasurement.__dataclass_fields__}


def spec_digest(spec: Mapping[str, Any]) -> str:
    """Return the digest of a tokenizer's specification."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def requested_measurement(config: TrainConfig) -> Measurement:
    """Return the measurement that the config of a run asks for."""
    data = signature_fields(config.data)
    for key in ("order", "tokenizer", "vocab_size"):
        data.pop(key, None)
    precision = config.hardware.precision
    return Measurement(
        precision=None if precision == "auto" else precision,
        fp8=config.hardware.fp8,
        block_size=config.model.block_size,
        eval_tokens=config.eval.tokens,
        source=spec_digest(data),
        tokenizer_name=config.data.tokenizer,
        asked_vocab_size=config.data.vocab_size,
        source_name=config.data.source or config.data.name,
    )


def planned_measurement(config: TrainConfig) -> Measurement:
    """Return the measurement of a sweep point that is not trained yet, as far as its config decides it."""
    asked, hardware = requested_measurement(config), config.hardware
    if hardware.precision != "auto":
        return asked
    return replace(asked, precision="fp32" if hardware.device == "cpu" else f"auto on {hardware.device}")


def read_history(
    config: TrainConfig, starts: Sequence[Mapping[str, Any]], folder: Path
) -> list[tuple[int, Measurement]]:
    """Return (step of the last evaluation before it, measurement) of every start of a run, oldest first.

    `starts` is the content of provenance.json in `folder`. Earlier versions recorded only the fingerprint of the data
    and the precision; their tokenizer is read from the run directory.
    """
    base = replace(requested_measurement(config), **read_tokenizer(folder))
    history: list[tuple[int, Measurement]] = []
    trained: list[str] = []
    for number, start in enumerate(starts):
        facts = read_recorded(start)
        precision = facts.get("precision") or base.precision
        joined = " then ".join([*trained, *([precision] if precision and precision not in trained[-1:] else [])])
        evaluated = start.get("evaluated", first_step(start) if number else -1)
        evaluated = evaluated if isinstance(evaluated, int) else -1
        history.append((evaluated, replace(base, **facts | {"precision": joined or None})))
        goes_on = number + 1 == len(starts) or first_step(starts[number + 1]) > first_step(start)
        if goes_on and precision and precision not in trained[-1:]:
            trained.append(precision)
    return history or [(-1, base)]


def measured_at(history: Sequence[tuple[int, Measurement]], step: float) -> Measurement:
    """Return the measurement of the evaluation at a step."""
    return next((measurement for evaluated, measurement in reversed(history) if evaluated < step), history[0][1])


def read_recorded(start: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that a start of a run recorded; values of the wrong type count as not recorded."""
    arithmetic = as_mapping(start.get("arithmetic"))
    facts = {"data": start.get("data"), "precision": arithmetic.get("precision"), "fp8": arithmetic.get("fp8")}
    facts |= as_mapping(start.get(MEASUREMENT_KEY))
    kinds = {"vocab_size": int, "coverage": float, "fp8": bool}
    return {
        name: facts[name]
        for name in RecordedMeasurement.__dataclass_fields__
        if type(facts.get(name)) is kinds.get(name, str)
    }


def first_step(start: Mapping[str, Any]) -> int:
    """Return the step from which a start continued, 0 if it is not recorded."""
    step = start.get("from_step")
    return step if isinstance(step, int) else 0


def as_mapping(value: object) -> dict[str, Any]:
    """Return a JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Return digest and size of the tokenizer in a run directory, {} if it can't be read."""
    try:
        return dict(read_tokenizer_facts(read_bytes(folder / tokenizers.FILE)))
    except (OSError, ValueError, LabError):
        return {}


@lru_cache(maxsize=256)
def read_tokenizer_facts(text: bytes) -> tuple[tuple[str, Any], ...]:
    """Return the facts of a tokenizer.json; many runs share one. Raises BadData, ValueError."""
    spec = as_mapping(from_json(text))
    # GPT-2's files may be missing
    size = 50_257 if spec.get("kind") == "gpt2" else len(tokenizers.from_spec(spec).tokens)
    return (("tokenizer", spec_digest(spec)), ("vocab_size", size))
