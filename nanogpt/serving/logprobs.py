"""Log-probabilities of tokens, in the form of OpenAI's completions."""

import codecs
from typing import Any

import torch
from torch import Tensor

from nanogpt import tokenizer as tokenizers
from nanogpt.interop.load_model import TrainedModel
from nanogpt.serving.job import Job
from nanogpt.tokenizer import END_OF_TEXT, Tokenizer


@torch.inference_mode()
def compute_logprobs(trained: TrainedModel, job: Job, row: int, count: int) -> dict[str, list[Any]]:
    """Return tokens, their log-probabilities, those of the `count` most likely, and offsets in a text of the reply.

    They are those of the model, before temperature and other rules of sampling. Echoed tokens are included; the first
    of all has no probability. Tokens after the end of the text are left out.
    """
    prompt, answer, echo = job.prompts[row], job.answers[row], job.echoes[row]
    ids = [*prompt, *answer.tokens]
    batch = torch.tensor([ids], device=trained.model.lm_head.weight.device)
    logits = trained.model(batch[:, : max(1, len(ids) - 1)])[0, :, : len(trained.tokenizer.tokens)]
    table = logits.float().log_softmax(1).cpu()
    decoder, offset = codecs.getincrementaldecoder("utf-8")("replace"), 0
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for position in range(0 if echo else len(prompt), len(ids)):
        if offset >= len(echo) + len(answer.text):
            break
        token, before = ids[position], table[position - 1] if position else None
        found["tokens"].append(show_token(trained.tokenizer, token))
        found["text_offset"].append(offset)
        found["token_logprobs"].append(None if before is None else float(before[token]))
        found["top_logprobs"].append(None if before is None else top_logprobs(trained.tokenizer, before, count, token))
        offset += len(decoder.decode(tokenizers.decode_bytes(trained.tokenizer, [token])))
    return found


def top_logprobs(tokenizer: Tokenizer, logprobs: Tensor, count: int, token: int) -> dict[str, float]:
    """Return the log-probabilities of the `count` most likely tokens and of `token`."""
    top = [*logprobs.topk(min(count, len(logprobs))).indices.tolist(), token]
    return {show_token(tokenizer, i): float(logprobs[i]) for i in top}


def show_token(tokenizer: Tokenizer, token: int) -> str:
    r"""Return a token's text; as `bytes:\xf0\x9f` if it is not whole characters."""
    content = tokenizer.tokens[token]
    if token == tokenizer.end_of_text:
        return END_OF_TEXT
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
