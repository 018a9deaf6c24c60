"""Record what a validation loss is measured on."""

import hashlib

import numpy as np

from nanogpt.data.dataset import Dataset
from nanogpt.data.text_digest import compute_text_digest
from nanogpt.evaluation.loss import LossEvaluation
from nanogpt.measurement import RecordedMeasurement, spec_digest


def describe_measurement(loss: LossEvaluation, dataset: Dataset, fp8: bool | None = None) -> RecordedMeasurement:
    """Return what the validation losses of `loss` are measured on. Reads the validation split once. Raises BadData."""
    tokenizer = dataset.tokenizer
    windows, n_bytes = read_windows_once(loss)
    text = compute_text_digest(dataset.val, tokenizer)
    return RecordedMeasurement(
        tokenizer=spec_digest(tokenizer.spec()),
        vocab_size=len(tokenizer.tokens),
        windows=windows,
        text=text and text.sha256,
        coverage=None if text is None else round(n_bytes / max(1, text.bytes), 4),
        data=dataset.fingerprint,
        precision=loss.compute.precision,
        fp8=fp8,
    )


def read_windows_once(loss: LossEvaluation) -> tuple[str, int]:
    """Return (digest of the evaluated windows, bytes of text that they predict)."""
    digest, n_bytes = hashlib.sha256(str(loss.block_size).encode()), 0
    for shard, offset in loss.windows["val"]:
        ids = loss.splits["val"].read(shard, offset, loss.block_size + 1)
        digest.update(np.ascontiguousarray(ids, "<i8").tobytes())
        n_bytes += int(loss.token_bytes[ids[1:]].sum())
    return digest.hexdigest(), n_bytes
