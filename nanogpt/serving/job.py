"""Texts to generate for one request."""

from collections.abc import Sequence
from dataclasses import dataclass

from nanogpt import tokenizer as tokenizers
from nanogpt.config import SampleConfig, ServeConfig
from nanogpt.errors import BadInput
from nanogpt.generation.answers import Answer, check_prompt_length, encode_prompt
from nanogpt.generation.command import check_special_tokens
from nanogpt.interop.load_model import TrainedModel
from nanogpt.serving.chat_template import ChatTemplate
from nanogpt.serving.requests import ChatRequest, CompletionRequest, GenerationRequest


@dataclass(frozen=True)
class Job:
    """B texts to generate: `n` for each prompt of a request, prompt by prompt."""

    request: GenerationRequest
    settings: SampleConfig
    prompts: list[list[int]]
    echoes: list[str]
    """Text to repeat at the start of each reply: the prompt if `echo` is set, else empty."""
    answers: list[Answer]

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens. Those of a prompt count once, whatever `n` is."""
        read = sum(map(len, self.prompts)) // self.request.n
        generated = sum(len(answer.tokens) for answer in self.answers)
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def plan_completion(trained: TrainedModel, config: ServeConfig, request: CompletionRequest) -> Job:
    """Return the job of a completion. Raises BadInput."""
    given = request.prompts()
    check_limits(config, request.max_tokens, len(given), request.n)
    settings = request.sample_config(request.max_tokens, request.stop_texts(), request.special_tokens)
    check_special_tokens(trained, settings, [])
    prompts: list[tuple[list[int], str]] = []
    for prompt in given:
        if isinstance(prompt, str):
            prompts.append((encode_prompt(trained, settings, prompt), prompt))
        else:
            check_ids(trained, settings, prompt)
            prompts.append((prompt, tokenizers.decode(trained.tokenizer, prompt)))
    longest, fits = max(len(ids) for ids, _ in prompts) + request.max_tokens, trained.model.config.block_size + 1
    if request.logprobs is not None and longest > fits:
        why = f"prompt and max_tokens are {longest} tokens; allowed: at most {fits}"
        raise BadInput(f"logprobs={request.logprobs}: {why}")
    return build_job(trained, request, settings, [(ids, text if request.echo else "") for ids, text in prompts])


def plan_chat(trained: TrainedModel, config: ServeConfig, request: ChatRequest, template: ChatTemplate) -> Job:
    """Return the job of a chat completion. Raises BadInput."""
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    max_tokens = config.max_tokens if asked is None else asked
    check_limits(config, max_tokens, 1, request.n)
    settings = request.sample_config(max_tokens, [*request.stop_texts(), *template.end_of_turn], True)
    text = template.render([message.model_dump() for message in request.messages])
    return build_job(trained, request, settings, [(encode_prompt(trained, settings, text), "")])


def build_job(
    trained: TrainedModel, request: GenerationRequest, settings: SampleConfig, prompts: Sequence[tuple[list[int], str]]
) -> Job:
    """Return the job with `n` texts for each prompt, given as its ids and what the reply begins with."""
    ids, echoes = zip(*[prompt for prompt in prompts for _ in range(request.n)], strict=True)
    return Job(request, settings, [*ids], [*echoes], [Answer(trained.tokenizer, settings.task) for _ in ids])


def check_limits(config: ServeConfig, max_tokens: int, n_prompts: int, n: int) -> None:
    """Raise BadInput for more tokens or texts than the server allows."""
    if max_tokens > config.max_tokens:
        raise BadInput(f"max_tokens={max_tokens}: allowed by this server: at most {config.max_tokens}")
    if n_prompts * n > config.max_choices:
        raise BadInput(f"n={n}: asks for {n_prompts * n} texts; allowed by this server: at most {config.max_choices}")


def check_ids(trained: TrainedModel, settings: SampleConfig, ids: Sequence[int]) -> None:
    """Raise BadInput for token ids that the tokenizer doesn't have, or too many of them."""
    largest = len(trained.tokenizer.tokens) - 1
    if min(ids) < 0 or max(ids) > largest:
        raise BadInput(f"prompt: token ids must be in [0, {largest}]")
    check_prompt_length(trained, settings, ids, f"[{ids[0]}, …]")
