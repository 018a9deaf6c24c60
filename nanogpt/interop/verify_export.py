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
from nanogpt.interop.load_weights import load_weights
from nanogpt.interop.sources import NanoGPTCheckpoint
from nanogpt.model.gpt import GPT
from nanogpt.tokenizer import CharTokenizer, Tokenizer

TOLERANCE = 3e-5  # of the largest logit: fp32 rounding of deep networks stays below, another network does not
POSITIONS = 64  # compared at most
PROBE = "Hello, world!\n\n  It's 12345 o'clock — naïve café 🙂\tdef f(x):\n    return x\n"


@torch.inference_mode()
def verify_with_transformers(model: GPT, tokenizer: Tokenizer, folder: Path) -> str:
    """Compare with what transformers loads from the folder; return a sentence for the user.

    Raises LabError naming the largest difference of the logits, or a text whose ids differ.
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
        except Exception as error:  # transformers raises whatever it meets
            raise LabError(f"the export can't be loaded by transformers: {one_line(error, 300)}") from None
    if their_ids != tokenizer.encode(text).tolist():
        raise LabError("the exported tokenizer gives other token ids in transformers; nothing was written")
    return compare_logits(model, ids, found, "transformers")


@torch.inference_mode()
def verify_read_back(model: GPT, tokenizer: Tokenizer, path: Path) -> str:
    """Compare with what `init_from=…/ckpt.pt` reads; return a sentence for the user. Raises LabError."""
    source = NanoGPTCheckpoint(path)
    config = ModelConfig.model_validate(source.values())
    again = GPT(config, seed=None).eval()
    load_weights(again, source)
    theirs = source.tokenizer()
    if theirs is None or theirs.tokens != tokenizer.tokens:
        raise LabError("the exported tokenizer isn't read back as it was; nothing was written")
    ids = random_ids(model.config)
    return compare_logits(model, ids, again(ids), "init_from")


def compare_logits(model: GPT, ids: Tensor, found: Tensor, reader: str) -> str:
    """Return a sentence with the largest difference. Raises LabError where it is more than rounding."""
    expected = model(ids)[..., : model.config.vocab_size]
    if found.shape != expected.shape:
        shapes = " and ".join("x".join(map(str, one.shape)) for one in (found, expected))
        raise LabError(f"the exported model's logits are {shapes} in {reader} and here; nothing was written")
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):  # also where it is not a number
        raise LabError(
            f"the exported model's logits differ in {reader} by up to {difference:.2g}, of logits up to {largest:.2g}; "
            "nothing was written; verify=false writes it all the same"
        )
    return f"compared with {reader}: logits differ by at most {difference:.1g}, of logits up to {largest:.2g}"


def random_ids(config: ModelConfig) -> Tensor:
    """Return (1, T) ids of the vocabulary, the same in every call, the first and the last among them."""
    assert config.vocab_size is not None
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (1, min(POSITIONS, config.block_size)), generator=generator)
    ids[0, 0] = config.vocab_size - 1
    return ids


def probe_text(tokenizer: Tokenizer) -> str:
    """Return a text that the tokenizer can encode."""
    return PROBE if not isinstance(tokenizer, CharTokenizer) else tokenizer.chars + tokenizer.chars[::-1]


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
