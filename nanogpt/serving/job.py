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
    """What each reply begins with."""
    answers: list[Answer]

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens. Those of a prompt count once, whatever `n` is."""
        read = sum(map(len, self.prompts)) // self.request.n
        generated = sum(len(answer.tokens) for answer in self.answers)
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def plan_completion(trained: TrainedModel, config: ServeConfig, request: CompletionRequest) -> Job:
    """Return the job of a completion. Raises BadInput."""
    check_limit("max_tokens", request.max_tokens, config.max_tokens)
    settings = request.sample_config(request.max_tokens, request.stop_texts(), request.special_tokens)
    check_special_tokens(trained, settings, [])
    prompts: list[list[int]] = []
    echoes: list[str] = []
    for prompt in request.prompts():
        if isinstance(prompt, str):
            prompts.append(encode_prompt(trained, settings, prompt))
            echoes.append(prompt)
        else:
            check_ids(trained, settings, prompt)
            prompts.append(prompt)
            echoes.append(tokenizers.decode(trained.tokenizer, prompt))
    job = build_job(trained, config, request, settings, prompts, echoes if request.echo else [""] * len(prompts))
    longest, fits = max(map(len, prompts)) + request.max_tokens, trained.model.config.block_size + 1
    if request.logprobs is not None and longest > fits:
        why = f"prompt and max_tokens are {longest} tokens; allowed: at most {fits}"
        raise BadInput(f"logprobs={request.logprobs}: {why}")
    return job


def plan_chat(trained: TrainedModel, config: ServeConfig, request: ChatRequest, template: ChatTemplate) -> Job:
    """Return the job of a chat completion. Raises BadInput."""
    asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    check_limit("max_tokens", asked or 0, config.max_tokens)
    stop = [*request.stop_texts(), *template.end_of_turn]
    settings = request.sample_config(config.max_tokens if asked is None else asked, stop, True)
    text = template.render([message.model_dump() for message in request.messages])
    return build_job(trained, config, request, settings, [encode_prompt(trained, settings, text)], [""])


def build_job(
    trained: TrainedModel,
    config: ServeConfig,
    request: GenerationRequest,
    settings: SampleConfig,
    prompts: Sequence[list[int]],
    echoes: Sequence[str],
) -> Job:
    """Return the job with each prompt `n` times. Raises BadInput for too many texts."""
    count = len(prompts) * request.n
    if count > config.max_choices:
        raise BadInput(f"n={request.n}: asks for {count} texts; allowed by this server: at most {config.max_choices}")
    each = [i for i in range(len(prompts)) for _ in range(request.n)]
    answers = [Answer(trained.tokenizer, settings.task) for _ in each]
    return Job(request, settings, [prompts[i] for i in each], [echoes[i] for i in each], answers)


def check_limit(key: str, value: int, most: int) -> None:
    """Raise BadInput if the value of a parameter is above the server's limit."""
    if value > most:
        raise BadInput(f"{key}={value}: allowed by this server: at most {most}")


def check_ids(trained: TrainedModel, settings: SampleConfig, ids: Sequence[int]) -> None:
    """Raise BadInput for token ids that the tokenizer doesn't have, or too many of them."""
    largest = len(trained.tokenizer.tokens) - 1
    if min(ids) < 0 or max(ids) > largest:
        raise BadInput(f"prompt: token ids must be in [0, {largest}]")
    check_prompt_length(trained, settings, ids, f"[{ids[0]}, …]")
