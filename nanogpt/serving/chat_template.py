"""Chat template of a Hugging Face folder: a conversation as the text that the model was trained on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanogpt.config import TrainedConfig
from nanogpt.errors import BadInput, one_line
from nanogpt.files import read_json_object, read_text
from nanogpt.interop.architecture import GPT2_SIZES

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatTemplate:
    """Jinja template with the special tokens that it may name. Rendered as transformers does."""

    source: str
    special_tokens: Mapping[str, str]

    @property
    def end_of_turn(self) -> list[str]:
        """Text after which the model has answered."""
        return [self.special_tokens["eos_token"]] if "eos_token" in self.special_tokens else []

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text up to where the answer begins. Raises BadInput for what the template refuses."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = to_json
        names: dict[str, Any] = {"tools": None, "documents": None, **self.special_tokens}
        names |= {"raise_exception": refuse, "strftime_now": format_now}
        try:
            template = environment.from_string(self.source)
            return template.render(messages=messages, add_generation_prompt=True, **names)
        except Exception as error:  # of any type: the template is a program
            raise BadInput(f"messages: the model's chat template can't take them: {one_line(error, 200)}") from None


def to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def format_now(format: str) -> str:
    return datetime.now().strftime(format)


def refuse(message: str) -> NoReturn:
    """Raise TemplateError; templates call it for conversations that they can't take."""
    raise TemplateError(message)


def read_chat_template(config: TrainedConfig) -> ChatTemplate | None:
    """Return the chat template beside the tokenizer of a command's config, or None if there is none."""
    name = config.tokenizer or config.init_from
    if name is None or name in GPT2_SIZES:
        return None
    folder = Path(name)
    about = read_json_object(folder / "tokenizer_config.json")
    source: Any = about.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}.get(
            "default"
        )
    if (folder / "chat_template.jinja").exists():
        source = read_text(folder / "chat_template.jinja")
    tokens = {key: about.get(key) for key in SPECIAL_TOKENS}
    plain = {key: token.get("content") if isinstance(token, dict) else token for key, token in tokens.items()}
    special_tokens = {key: token for key, token in plain.items() if isinstance(token, str) and token}
    return ChatTemplate(source, special_tokens) if isinstance(source, str) else None
