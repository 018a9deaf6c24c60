"""Generation for several requests at once: they take turns in one thread, a token each."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import HTTPException

from nanogpt.config import ServeConfig
from nanogpt.generation.answers import generate_answers
from nanogpt.interop.load_model import TrainedModel
from nanogpt.serving.job import Job

T = TypeVar("T")


class Engine:
    """Model with a queue. All of the model's work is done in one thread, in the order in which it is asked for."""

    def __init__(self, trained: TrainedModel, config: ServeConfig) -> None:
        self.trained = trained
        self.thread = ThreadPoolExecutor(1)
        self.slots = asyncio.Semaphore(config.max_running)
        self.most = config.max_running + config.max_waiting
        self.n_requests = 0
        """Number of requests that are generated or wait."""
        self.stop_at = math.inf
        """Time on the monotonic clock from which on requests fail."""

    async def call(self, function: Callable[[], T]) -> T:
        """Return the result of a function, called in the thread of the model."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function)

    async def generate(self, job: Job) -> AsyncGenerator[tuple[int, str], None]:
        """Yield (row, piece of text) of a job. Closing it ends the job. Raises HTTPException 429, 503."""
        if self.n_requests >= self.most:
            raise HTTPException(429, "too many requests wait; try again later")
        self.n_requests += 1
        try:
            async with self.slots:
                numbers = range(len(job.prompts))
                pieces = generate_answers(self.trained, job.settings, job.prompts, numbers, job.answers)
                while (item := await self.call(lambda: next(pieces, None))) is not None:
                    yield item
                    if time.monotonic() > self.stop_at:
                        raise HTTPException(503, "the server is stopping")
        finally:
            self.n_requests -= 1
