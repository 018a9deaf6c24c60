"""Answers of a model to prompts: template, tokens, sampling, and the end of an answer.

B batch.
"""

import codecs
import re
from collections.abc import Iterator, Sequence

import torch

from nanogpt import tokenizer as tokenizers
from nanogpt.config import SampleConfig, TaskConfig
from nanogpt.data.sampler import derive_seed
from nanogpt.errors import BadInput, one_line
from nanogpt.generation.decode import SamplingParams, generate
from nanogpt.interop.load_model import TrainedModel
from nanogpt.tokenizer import Tokenizer

SENTENCE = re.compile(r"[.!?][\"')\]]*\s")


class Answer:
    """A text that grows token by token until it ends by the task's rules. Decodes UTF-8 incrementally."""

    def __init__(self, tokenizer: Tokenizer, task: TaskConfig) -> None:
        self.tokenizer, self.task = tokenizer, task
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text = ""
        self.tokens: list[int] = []
        self.n_returned = 0
        """Number of characters that `add` has returned."""
        self.finished = self.stopped = False
        """The text is complete; it was ended by the task's rules, not by a limit."""

    def add(self, token: int) -> str:
        """Add a token and return the text that can be shown now: not what may be the beginning of a stop text."""
        if self.finished:
            return ""
        self.tokens.append(token)
        if self.task.until_end and token == self.tokenizer.end_of_text:
            self.stopped = True
            return self.close()
        self.text += self.decoder.decode(tokenizers.decode_bytes(self.tokenizer, [token]))
        end = self.find_end()
        if end is not None:
            self.text, self.finished, self.stopped = self.text[:end], True, True
        return self.take_until(len(self.text) - (0 if self.finished else self.partial_stop_length()))

    def close(self) -> str:
        """End the text and return the rest of it."""
        if not self.finished:
            self.text += self.decoder.decode(b"", final=True)
            self.finished = True
        return self.take_until(len(self.text))

    def take_until(self, end: int) -> str:
        piece, self.n_returned = self.text[self.n_returned : end], max(self.n_returned, end)
        return piece

    def find_end(self) -> int | None:
        """Return the position at which the text ends by the task's rules, or None."""
        ends = [index for stop in self.task.stop if (index := self.text.find(stop)) >= 0]
        if self.task.sentences is not None:
            found = list(SENTENCE.finditer(self.text))
            ends += [found[self.task.sentences - 1].end() - 1] if len(found) >= self.task.sentences else []
        return min(ends, default=None)

    def partial_stop_length(self) -> int:
        """Return the number of characters at the end that begin a stop text."""
        lengths = (n for stop in self.task.stop for n in range(1, len(stop)) if self.text.endswith(stop[:n]))
        return max(lengths, default=0)


def encode_prompt(trained: TrainedModel, config: SampleConfig, text: str) -> list[int]:
    """Return the ids of a prompt in its template. Raises BadInput if it is invalid, unknown or too long."""
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        raise BadInput(f"prompt={one_line(text)}: not valid UTF-8")
    filled = config.task.template.replace("{prompt}", text)
    if not filled:
        return list(trained.start_ids) or tokenizers.start_ids(trained.tokenizer)
    try:
        if config.special_tokens:
            ids = tokenizers.encode_with_special_tokens(trained.tokenizer, filled)
        else:
            ids = trained.tokenizer.encode(filled).tolist()
    except BadInput as error:
        raise BadInput(f"prompt={one_line(filled)}: {error}") from None
    check_prompt_length(trained, config, ids, text)
    return ids


def check_prompt_length(trained: TrainedModel, config: SampleConfig, ids: Sequence[int], shown: str) -> None:
    """Raise BadInput if the ids of a prompt are more than the model sees."""
    block_size = trained.model.config.block_size
    if len(ids) > block_size and not config.truncate:
        why = f"{len(ids)} tokens, the model sees {block_size}; truncate=true takes the last {block_size}"
        raise BadInput(f"prompt={one_line(shown)}: {why}")


def sampling_params(trained: TrainedModel, config: SampleConfig) -> SamplingParams:
    """Return the sampling parameters of a config, restricted to the tokenizer's ids."""
    return SamplingParams(
        config.repetition_penalty,
        config.temperature,
        config.top_k,
        config.top_p,
        config.min_p,
        len(trained.tokenizer.tokens),
    )


def generate_answers(
    trained: TrainedModel,
    config: SampleConfig,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    answers: Sequence[Answer] | None = None,
) -> Iterator[tuple[int, str]]:
    """Answer B prompts in one batch, and yield (row, piece of text) as soon as it is generated.

    `numbers` count the texts of the whole command; with the seed they determine the random numbers of each text. The
    texts are collected in `answers`, or in new ones.
    """
    device = trained.model.lm_head.weight.device
    generators = [torch.Generator(device).manual_seed(derive_seed(config.seed, number)) for number in numbers]
    rows = answers or [Answer(trained.tokenizer, config.task) for _ in prompts]
    params = sampling_params(trained, config)
    drawn = generate(trained.model, prompts, config.max_new_tokens, params, generators, config.attention)
    for tokens in drawn:
        for row, (answer, token) in enumerate(zip(rows, tokens, strict=True)):
            if not answer.finished:
                yield row, answer.add(token)
        if all(answer.finished for answer in rows):
            return
    for row, answer in enumerate(rows):
        if not answer.finished:
            yield row, answer.close()
