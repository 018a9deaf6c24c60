"""`python sample.py`: text from a trained run, on the console as it is drawn."""

import codecs
import sys
from collections.abc import Iterable

import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.checkpoint import Loaded, verify
from nanogpt.config import SampleConfig
from nanogpt.data.sampler import seed_of
from nanogpt.device import find_device
from nanogpt.errors import BadCheckpoint, BadInput, escaped
from nanogpt.generate import Draw, generate
from nanogpt.model.gpt import GPT
from nanogpt.run_directory import RunDirectory, find
from nanogpt.tokenizer import Tokenizer
from nanogpt.tracking.console import visible


def sample(config: SampleConfig) -> int:
    """Print `num_samples` continuations of the prompt. Raises BadInput, BadCheckpoint, BadEnvironment."""
    run = find(config.run, config.runs_dir)
    tokenizer = tokenizers.load(run.path)
    prompt = encode_prompt(tokenizer, config.prompt)
    device = find_device(config.device, "device")
    model = load_model(run, len(tokenizer.tokens), config.checkpoint).to(device)
    if len(prompt) > model.config.block_size:
        print(
            f"note: the prompt has {len(prompt)} tokens, the model sees the last {model.config.block_size}",
            file=sys.stderr,
        )
    draw = Draw(config.temperature, config.top_k, config.top_p, len(tokenizer.tokens))
    for number in range(config.num_samples):
        if config.num_samples > 1:
            print(f"--- sample {number + 1} of {config.num_samples}")
        generator = torch.Generator(device).manual_seed(seed_of(config.seed, number))
        drawn = generate(model, prompt, config.max_new_tokens, draw, generator)
        write(tokenizer, [*prompt] if config.prompt else [], drawn, config.stream)
    return 0


def encode_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of the prompt. Raises BadInput for what is not text or not in the vocabulary."""
    if not text:
        return tokenizers.start_ids(tokenizer)
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        raise BadInput(f"prompt={escaped(text)}: not valid UTF-8")
    try:
        return tokenizer.encode(text).tolist()
    except BadInput as error:
        raise BadInput(f"prompt={escaped(text)}: {error}") from None


def load_model(run: RunDirectory, vocab_size: int, which: str) -> GPT:
    """The model of a run at its best or latest checkpoint, in evaluation mode. Raises BadCheckpoint."""
    step = run.checkpoints.best_step() if which == "best" else None
    loaded: Loaded | None = verify(run.checkpoints.path(step)) if step is not None else run.checkpoints.newest()[0]
    if loaded is None:
        raise BadCheckpoint(f"{escaped(run.path)}: no checkpoint yet")
    model = GPT(run.config().model.with_vocab(vocab_size))
    try:
        model.load_state_dict({**loaded.model, "lm_head.weight": loaded.model["transformer.wte.weight"]})
    except (RuntimeError, KeyError) as error:
        raise BadCheckpoint(f"{escaped(loaded.path)}: not this model's: {escaped(error, 200)}") from None
    return model.eval()


def write(tokenizer: Tokenizer, prompt: list[int], drawn: Iterable[int], stream: bool) -> None:
    """Print tokens as they come; bytes of an unfinished character wait for the rest of it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    sys.stdout.write(shown(decoder.decode(tokenizers.decode_bytes(tokenizer, prompt))))
    for token in drawn:
        sys.stdout.write(shown(decoder.decode(tokenizers.decode_bytes(tokenizer, [token]))))
        if stream:
            sys.stdout.flush()
    sys.stdout.write(shown(decoder.decode(b"", final=True)) + "\n")
    sys.stdout.flush()


def shown(text: str) -> str:
    """Text as it is for a file or a pipe, without power over a terminal."""
    return "\n".join(map(visible, text.split("\n"))) if sys.stdout.isatty() else text
