"""Routes of OpenAI's API, and its form of errors."""

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from nanogpt.config import ServeConfig
from nanogpt.device_errors import as_device_error
from nanogpt.errors import BadInput, one_line
from nanogpt.files import from_json
from nanogpt.interop.load_model import TrainedModel
from nanogpt.schema import from_dict
from nanogpt.serving.chat_template import ChatTemplate
from nanogpt.serving.engine import Engine
from nanogpt.serving.job import Job, plan_chat, plan_completion
from nanogpt.serving.logprobs import compute_logprobs
from nanogpt.serving.replies import Reply
from nanogpt.serving.requests import ChatRequest, CompletionRequest

T = TypeVar("T")
KINDS = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}
PATIENCE_S = 5  # after that for requests: a client that neither sends nor reads is cut off


class Api:
    """Endpoints of one model."""

    def __init__(
        self, trained: TrainedModel, template: ChatTemplate | None, config: ServeConfig, key: str | None
    ) -> None:
        self.trained, self.template, self.config, self.key = trained, template, config, key
        self.engine = Engine(trained, config)
        self.model: dict[str, Any] = {
            "id": Path(trained.name).resolve().name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "nanogpt-lab",
        }

    def app(self) -> FastAPI:
        """Return the application."""
        app = FastAPI(openapi_url=None, dependencies=[Depends(self.check_key)])
        app.add_api_route("/v1/completions", self.complete, methods=["POST"], response_model=None)
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"], response_model=None)
        app.add_api_route("/v1/models", self.list_models)
        app.add_api_route("/v1/models/{name}", self.show_model)
        for kind in (BadInput, AnyHTTPException, ClientDisconnect, Exception):
            app.add_exception_handler(kind, to_response)
        return app

    def check_key(self, request: Request) -> None:
        """Raise HTTPException unless the request has the server's key, if it has one."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key is not None and not hmac.compare_digest(given.encode(), self.key.encode()):
            raise HTTPException(401, "the API key is missing or wrong")

    def list_models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self.model]}

    def show_model(self, name: str) -> dict[str, Any]:
        self.check_model(name)
        return self.model

    def check_model(self, name: str) -> None:
        """Raise HTTPException for another model than the one that is served."""
        if name not in ("", self.model["id"]):
            raise HTTPException(404, f"model={one_line(name)}: no such model; allowed: {self.model['id']}")

    async def complete(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        body = from_dict(CompletionRequest, await self.read_body(request))
        self.check_model(body.model)
        return await self.respond(request, plan_completion(self.trained, self.config, body))

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        body = from_dict(ChatRequest, await self.read_body(request))
        self.check_model(body.model)
        if self.template is None:
            raise BadInput("messages: this model's tokenizer has no chat template; use /v1/completions")
        return await self.respond(request, plan_chat(self.trained, self.config, body, self.template))

    async def read_body(self, request: Request) -> dict[str, Any]:
        """Return the JSON object of a request. Raises BadInput, HTTPException."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "the request needs the header Content-Type: application/json")
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > self.config.max_body_bytes:
                raise HTTPException(413, f"the request is larger than {self.config.max_body_bytes:,} bytes")
        try:
            body: object = from_json(bytes(content))
        except ValueError as error:
            raise BadInput(f"the request is not valid JSON: {one_line(error)}") from None
        if not isinstance(body, dict):
            raise BadInput("the request is not a JSON object")
        return {str(key): value for key, value in body.items()}

    async def respond(self, request: Request, job: Job) -> Response:
        """Return the reply, or its beginning when the first token is there. Raises ClientDisconnect."""
        reply = Reply(job, self.model["id"])
        if not job.request.stream:
            return JSONResponse(await until_disconnect(request, self.generate_all(job, reply)))
        pieces = self.engine.generate(job)
        first = await until_disconnect(request, anext(pieces))  # an error until now has its own status
        return StreamingResponse(report_error(reply.stream(first, pieces)), media_type="text/event-stream")

    async def generate_all(self, job: Job, reply: Reply) -> dict[str, Any]:
        """Return the whole reply."""
        async for _ in self.engine.generate(job):
            pass
        count = getattr(job.request, "logprobs", None)
        if count is None:
            return reply.to_dict(None)
        work = [partial(compute_logprobs, self.trained, job, row, count) for row in range(len(job.prompts))]
        return reply.to_dict([await self.engine.call(each) for each in work])


class ApiServer(uvicorn.Server):
    """HTTP server. A stop signal leaves requests `timeout` seconds, a second one none."""

    def __init__(self, api: Api, timeout: int) -> None:
        last = timeout + PATIENCE_S
        super().__init__(uvicorn.Config(api.app(), log_config=None, access_log=False, timeout_graceful_shutdown=last))
        self.engine, self.timeout = api.engine, timeout

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in time, or with the next token."""
        self.engine.stop_at = time.monotonic() + (0 if self.should_exit else self.timeout)
        if not self.should_exit:
            super().handle_exit(sig, frame)


async def report_error(events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield events; an error becomes the last one, and is raised if it is unexpected."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except Exception as error:
        yield f"data: {json.dumps(error_body(error))}\n\n"
        if not isinstance(error, AnyHTTPException):
            raise


async def until_disconnect(request: Request, work: Awaitable[T]) -> T:
    """Return what `work` returns. If the client goes before, cancel it and raise ClientDisconnect."""

    async def wait_until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_until_gone())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def describe_error(error: Exception) -> tuple[int, str]:
    """Return status and message of an error."""
    match error:
        case BadInput():
            return 400, str(error)
        case AnyHTTPException():
            return error.status_code, str(error.detail)
        case ClientDisconnect():
            return 499, "the client has gone"
        case _:
            return 500, str(as_device_error(error) or one_line(f"{type(error).__name__}: {error}", 300))


def error_body(error: Exception) -> dict[str, Any]:
    """Return an error in the form of OpenAI's API. `param` is the key with which our message begins."""
    status, message = describe_error(error)
    key = re.match(r"([a-z][\w.]*)(=|: )", message)
    about = {"message": message, "type": KINDS.get(status, "invalid_request_error"), "param": key and key[1]}
    code = "model_not_found" if status == 404 and key else "invalid_api_key" if status == 401 else None
    return {"error": {**about, "code": code}}


def to_response(_: Request, error: Exception) -> Response:
    """Return the reply to a request that failed."""
    return JSONResponse(error_body(error), describe_error(error)[0])
