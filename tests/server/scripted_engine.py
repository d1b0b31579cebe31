"""A model whose tokens the test hands out: the fake at the engine's seam.

A token is a word; the text of a prompt's runs is counted in words, an image is one token.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from idefics_chat.conversation.prompt import Prompt, TextRun, TokenRun
from idefics_chat.inference.errors import EngineBusy, EngineStopped, GenerationFailed
from idefics_chat.inference.requests import (
    FinishReason,
    GenerationRequest,
    GenerationResult,
    ImageLoader,
    ModelInfo,
    TextDelta,
    Usage,
)

END = object()
FAIL = object()


@dataclass
class ScriptedGeneration:
    """Says what the test puts into it, until END or FAIL, a cancel or a stop."""

    request: GenerationRequest
    words: asyncio.Queue[object] = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def say(self, *words: str) -> None:
        for word in words:
            self.words.put_nowait(word)

    def end(self) -> None:
        self.words.put_nowait(END)

    def fail(self) -> None:
        self.words.put_nowait(FAIL)

    def cancel(self) -> None:
        self.cancelled = True
        self.finish("cancelled")

    def finish(self, reason: FinishReason) -> None:
        self.words.put_nowait(GenerationResult("", (), reason, Usage()))

    async def __aiter__(self) -> AsyncIterator[TextDelta | GenerationResult]:
        said: list[str] = []
        while True:
            word = await self.words.get()
            if word is FAIL:
                raise GenerationFailed
            if isinstance(word, str):
                said.append(word)
                yield TextDelta(word)
                continue
            ended = word if isinstance(word, GenerationResult) else GenerationResult("", (), "stop", Usage())
            usage = Usage(input_tokens=sum(count(self.request.prompt)), output_tokens=len(said))
            ids = tuple(range(len(said)))
            yield GenerationResult("".join(said), ids, ended.finish_reason, usage, ended.choices)
            return


class ScriptedEngine:
    """Keeps the engine's interface. `asked` holds the generations in the order they were submitted."""

    def __init__(self, context_tokens: int = 200) -> None:
        self.info = ModelInfo("scripted", "idefics", "idefics-instruct", "words", context_tokens)
        self.asked: list[ScriptedGeneration] = []
        self.stopped = False
        self.busy = False
        self._arrived = asyncio.Event()

    async def count_tokens(self, prompt: Prompt, load_image: ImageLoader) -> tuple[int, ...]:
        for digest in prompt.digests:
            await load_image(digest)
        return count(prompt)

    async def submit(self, request: GenerationRequest) -> ScriptedGeneration:
        if self.stopped:
            raise EngineStopped
        for digest in request.prompt.digests:
            await request.load_image(digest)
        if self.stopped:
            raise EngineStopped
        if self.busy:
            raise EngineBusy(3)
        generation = ScriptedGeneration(request)
        if request.max_output_tokens == 0:
            generation.finish("length")
        self.asked.append(generation)
        self._arrived.set()
        return generation

    async def aclose(self) -> None:
        self.stopped = True
        for generation in self.asked:
            generation.finish("stopped")

    async def turn(self, index: int) -> ScriptedGeneration:
        """The generation asked for as number `index`, once it was."""
        while len(self.asked) <= index:
            self._arrived.clear()
            await self._arrived.wait()
        return self.asked[index]


def count(prompt: Prompt) -> tuple[int, ...]:
    """Words of each run."""
    return tuple(len(run.text.split()) if isinstance(run, TextRun | TokenRun) else 1 for run in prompt.runs)
