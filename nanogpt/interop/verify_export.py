"""Read an export back and compare its logits and token ids with those of the model that was exported."""

import importlib.util
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt.config import ModelConfig
from nanogpt.errors import LabError, one_line
from nanogpt.interop.layout import format_shape
from nanogpt.interop.load_weights import load_weights
from nanogpt.interop.sources import NanoGPTCheckpoint
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import CharTokenizer, Tokenizer

TOLERANCE = 3e-5  # of the largest logit: fp32 rounding of deep networks stays below, another network does not
POSITIONS = 64  # compared at most
PROBE = "Hello, world!\n\n  It's 12345 o'clock — naïve café 🙂\tdef f(x):\n    return x\n"


@torch.inference_mode()
def verify_with_transformers(model: GPT, tokenizer: Tokenizer, folder: Path) -> str:
    """Compare with the model that transformers loads from the folder, and return the result as a sentence.

    Raises LabError naming the largest difference of the logits, or if token ids differ.
    """
    if importlib.util.find_spec("transformers") is None:
        return "not compared with transformers, which isn't installed: pip install 'transformers>=4.57'"
    import transformers

    with silence_transformers():
        try:
            theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            ids = random_ids(model.config)
            found: Tensor = theirs.eval()(ids).logits
            their_tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
            text = probe_text(tokenizer)
            their_ids: list[int] = their_tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # transformers raises exceptions of any type
            raise LabError(f"the export can't be loaded by transformers: {one_line(error, 300)}") from None
    if their_ids != tokenizer.encode(text).tolist():
        raise LabError("the exported tokenizer gives other token ids in transformers; nothing was written")
    return compare_logits(model, ids, found, "transformers")


@torch.inference_mode()
def verify_read_back(model: GPT, tokenizer: Tokenizer, path: Path) -> str:
    """Compare with the model that `init_from=…/ckpt.pt` reads, and return the result as a sentence. Raises LabError."""
    source = NanoGPTCheckpoint(path)
    copy = GPT(ModelConfig.model_validate(source.values()), seed=None).eval()
    load_weights(copy, source)
    theirs = source.tokenizer()
    if theirs is None or theirs.tokens != tokenizer.tokens:
        raise LabError("the exported tokenizer reads back with other tokens; nothing was written")
    ids = random_ids(model.config)
    return compare_logits(model, ids, copy(ids), "init_from")


def compare_logits(model: GPT, ids: Tensor, found: Tensor, reader: str) -> str:
    """Return a sentence with the largest difference. Raises LabError if it is more than rounding."""
    expected = model(ids)[..., : model.config.vocab_size]
    if found.shape != expected.shape:
        shapes = f"{format_shape(found.shape)} in {reader} and {format_shape(expected.shape)} here"
        raise LabError(f"the exported model's logits are {shapes}; nothing was written")
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):  # also true for NaN
        raise LabError(
            f"the exported model's logits differ in {reader} by up to {difference:.2g}, of logits up to {largest:.2g}; "
            "nothing was written; verify=false skips this check"
        )
    return f"compared with {reader}: logits differ by at most {difference:.1g}, of logits up to {largest:.2g}"


def random_ids(config: ModelConfig) -> Tensor:
    """Return (1, T) ids of the vocabulary, equal in every call, the last id among them."""
    assert config.vocab_size is not None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, min(POSITIONS, config.block_size)), generator=generator)
    ids[0, 0] = config.vocab_size - 1
    return ids


def probe_text(tokenizer: Tokenizer) -> str:
    """Return a text that the tokenizer can encode."""
    return tokenizer.chars + tokenizer.chars[::-1] if isinstance(tokenizer, CharTokenizer) else PROBE


@contextmanager
def silence_transformers() -> Generator[None, None, None]:
    """Keep transformers from writing to the terminal."""
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.set_verbosity(logging.CRITICAL)
        theirs.disable_progress_bar()
        try:
            yield
        finally:
            theirs.set_verbosity(level)
            if bar:
                theirs.enable_progress_bar()
