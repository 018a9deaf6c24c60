"""Replies in the form of OpenAI's API: whole, or as server-sent events."""

import json
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from nanogpt.serving.job import Job
from nanogpt.serving.requests import ChatRequest

Piece = tuple[int, str]
"""Row of a text in its job, and what comes next in it."""


class Reply:
    """Reply to one request."""

    def __init__(self, job: Job, model: str) -> None:
        self.job, self.chat = job, isinstance(job.request, ChatRequest)
        options = job.request.stream_options
        self.include_usage = options is not None and options.include_usage
        self.kind = "chat.completion" if self.chat else "text_completion"
        self.about = {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def finish_reason(self, row: int) -> str | None:
        """Return why a text is complete, or None if it isn't."""
        answer = self.job.answers[row]
        return None if not answer.finished else "stop" if answer.stopped else "length"

    def to_dict(self, logprobs: list[dict[str, list[Any]]] | None) -> dict[str, Any]:
        """Return the reply with all texts, which are complete."""
        choices: list[dict[str, Any]] = []
        for row, (echo, answer) in enumerate(zip(self.job.echoes, self.job.answers, strict=True)):
            body: dict[str, Any] = {"text": echo + answer.text}
            if self.chat:
                body = {"message": {"role": "assistant", "content": answer.text}}
            known = None if logprobs is None else logprobs[row]
            choices.append({"index": row, **body, "logprobs": known, "finish_reason": self.finish_reason(row)})
        return {**self.about, "object": self.kind, "choices": choices, "usage": self.job.usage}

    def chunk(self, row: int, text: str, reason: str | None = None, **delta: str) -> str:
        """Return the event with the next piece of a text."""
        body = {"delta": delta | ({"content": text} if text or delta else {})} if self.chat else {"text": text}
        choice = {"index": row, **body, "logprobs": None, "finish_reason": reason}
        return self.event([choice], {"usage": None} if self.include_usage else {})

    def event(self, choices: list[dict[str, Any]], usage: Mapping[str, Any]) -> str:
        """Return an event with choices."""
        kind = self.kind + (".chunk" if self.chat else "")
        return f"data: {json.dumps({**self.about, 'object': kind, 'choices': choices, **usage})}\n\n"

    async def stream(self, first: Piece, rest: AsyncGenerator[Piece, None]) -> AsyncGenerator[str, None]:
        """Yield the events of a reply with these pieces of its texts."""
        for row, echo in enumerate(self.job.echoes):
            if self.chat:
                yield self.chunk(row, "", role="assistant")
            elif echo:
                yield self.chunk(row, echo)
        for event in self.chunks(first):
            yield event
        async with aclosing(rest):
            async for piece in rest:
                for event in self.chunks(piece):
                    yield event
        if self.include_usage:
            yield self.event([], {"usage": self.job.usage})
        yield "data: [DONE]\n\n"

    def chunks(self, piece: Piece) -> Iterator[str]:
        """Yield the events of a piece of a text, and of its end."""
        row, text = piece
        if text:
            yield self.chunk(row, text)
        if reason := self.finish_reason(row):
            yield self.chunk(row, "", reason)
