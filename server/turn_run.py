"""Runs one accepted turn: from the engine's pieces to the log, from the log to the store, to exactly one end.

The log goes to the store a few times a second while the answer grows. The end is committed before anyone sees it, so
that what a client saw completed is safe.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from idefics_chat.conversation.messages import Message, TextPart, TokenRecord
from idefics_chat.inference.requests import (
    Engine,
    Generation,
    GenerationRequest,
    GenerationResult,
    TextDelta,
    TokenLogprob,
)
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.server.attendance import Attendance
from idefics_chat.server.errors import as_api_error
from idefics_chat.server.json_text import compact
from idefics_chat.server.response_events import EventWriter, FinalStatus
from idefics_chat.server.response_log import ResponseLog
from idefics_chat.server.response_object import Json, ResponseDraft, error_object, response_object, usage_object
from idefics_chat.server.turn_preparation import PreparedTurn
from idefics_chat.server.turns import Disconnect
from idefics_chat.storage.errors import StorageError
from idefics_chat.storage.values import Event, FinishedResponse

FLUSH_INTERVAL_S = 0.25
"""Between two flushes of a growing answer. All answers flush at the same moments, so that they share a commit."""

_ENDINGS: dict[str, tuple[FinalStatus, str | None]] = {
    "stop": ("completed", None),
    "length": ("incomplete", "max_output_tokens"),
    "cancelled": ("cancelled", "cancelled"),
    "stopped": ("incomplete", "server_stopping"),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended: what the store and the terminal event say of it."""

    status: FinalStatus
    message: Message | None = None
    usage: Json | None = None
    error: Json | None = None
    reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class Keeper(Protocol):
    """Where a turn's events and end go: the store, or for an unstored turn wherever its asker keeps it."""

    async def append_events(self, response_id: str, events: Sequence[Event]) -> None: ...

    async def finish_response(self, finished: FinishedResponse, events: Sequence[Event]) -> None: ...


class TurnRun:
    """One turn under way. `log` is what subscribers read; `opening` holds its first events. First
    `submit`, then the turn is committed with `opening`, then `run`; a turn that is not committed is cancelled.

    `on_disconnect` says what becomes of it when its last reader has gone. `cache_key` is the owner, whose turns may use
    what the model has computed for one another; None lets the conversation's own do so."""

    def __init__(
        self,
        prepared: PreparedTurn,
        keeper: Keeper,
        engine: Engine,
        clock: Callable[[], float],
        on_disconnect: Disconnect = "continue",
        cache_key: str | None = None,
    ) -> None:
        new = prepared.new
        self._draft = ResponseDraft(
            new.id, new.conversation_id, new.output_id, new.created_at, new.request, new.previous_response_id
        )
        self.log = ResponseLog(new.id, new.conversation_id)
        self._attendance = Attendance(on_disconnect, self.cancel)
        self.log.on_readers = self._attendance.count
        self._prepared = prepared
        self._cache_key = cache_key or new.conversation_id
        self._keeper = keeper
        self._engine = engine
        self._clock = clock
        self._writer = EventWriter(self._draft)
        self._generates = bool(new.request["generate"])
        self.opening = self._writer.begin(with_item=self._generates)
        if self._generates and prepared.begun is not None and prepared.begun.text:
            self.opening.append(self._writer.delta(prepared.begun.text))
        self._generation: Generation | None = None
        self._unflushed: list[Event] = []

    async def submit(self) -> None:
        """Give the request to the engine, before the turn is committed: a turn that the engine has no place for leaves
        nothing behind, its idempotency key included.

        Raises:
            PromptTooLong, InvalidSampling, EngineBusy, EngineStopped
        """
        self._generation = await self._engine.submit(self._request())

    def cancel(self) -> None:
        """Ask for the end between two tokens. Idempotent; what was said is kept."""
        self._submitted().cancel()

    def nobody_reads(self) -> None:
        """The asker went away before it could read anything."""
        self._attendance.count(0)

    async def run(self) -> None:
        """Run to the end; every error becomes the turn's end. The log is closed when this returns."""
        self.log.publish(self.opening)
        try:
            end = await self._generate()
        except Exception as error:  # noqa: BLE001  whatever failed, the client gets one terminal event
            end = self._failure(error)
        try:
            await self._finish(end)
        finally:
            self._attendance.end()
            self.log.close()

    async def _generate(self) -> TurnEnd:
        generation = self._submitted()
        async with asyncio.TaskGroup() as group:
            ended = asyncio.Event()
            group.create_task(self._keep_flushing(ended))
            try:
                result = await self._collect(generation)
            finally:
                ended.set()
        return self._ending(result)

    async def _collect(self, generation: Generation) -> GenerationResult:
        async for piece in generation:
            if isinstance(piece, TextDelta):
                event = self._writer.delta(piece.text, piece.logprobs)
                self._unflushed.append(event)
                self.log.publish([event])
            else:
                return piece
        raise RuntimeError("the engine ended a generation without a result")

    def _request(self) -> GenerationRequest:
        new = self._prepared.new
        return GenerationRequest(
            prompt=self._prepared.prompt,
            load_image=self._prepared.load_image,
            sampling=SamplingParams(**new.request["sampling"]),
            max_output_tokens=self._prepared.max_output_tokens if self._generates else 0,
            stop=tuple(new.request["stop"]),
            bad_words=tuple(new.request["bad_words"]),
            logprobs=new.request["top_logprobs"],
            cache_key=self._cache_key,
            continues=bool(self._prepared.begun and self._prepared.begun.text),
        )

    def _submitted(self) -> Generation:
        if self._generation is None:
            raise RuntimeError(f"the turn {self.log.response_id} was not submitted")
        return self._generation

    def _ending(self, result: GenerationResult) -> TurnEnd:
        usage = usage_object(result.usage)
        if not self._generates and result.finish_reason == "length":
            return TurnEnd("completed", None, usage)
        status, reason = _ENDINGS[result.finish_reason]
        if reason == "cancelled" and self._attendance.left:
            reason = "disconnected"
        message = self._answer(result, status) if self._generates else None
        logprobs = result.choices[0].logprobs if result.choices else ()
        return TurnEnd(status, message, usage, None, reason, logprobs)

    def _answer(self, result: GenerationResult, status: FinalStatus) -> Message:
        new = self._prepared.new
        return Message(
            id=new.output_id,
            role="assistant",
            parts=(TextPart(self._writer.text),),
            parent_id=new.messages[-1].id if new.messages else new.parent_id,
            status="completed" if status == "completed" else "incomplete",
            created_at=self._clock(),
            tokens=self._record(result),
        )

    def _record(self, result: GenerationResult) -> TokenRecord | None:
        """The ids of the whole answer, where all of them are of this tokenizer."""
        begun, tokenizer = self._prepared.begun, self._engine.info.tokenizer
        if begun is None or not begun.text:
            return TokenRecord(result.token_ids, tokenizer) if result.token_ids else None
        if begun.tokens is None or begun.tokens.tokenizer != tokenizer:
            return None
        return TokenRecord((*begun.tokens.ids, *result.token_ids), tokenizer)

    def _failure(self, error: Exception) -> TurnEnd:
        cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        _log.error("response %s failed", self.log.response_id, exc_info=cause)
        api_error = as_api_error(cause)
        return TurnEnd("failed", error=error_object(api_error.code, api_error.message))

    async def _keep_flushing(self, ended: asyncio.Event) -> None:
        """Until `ended`; a flush under way is never broken off, or its events would be written twice. Failing to
        flush does not end the answer: what is not flushed is committed at the end, or that fails too."""
        while not ended.is_set():
            now = asyncio.get_running_loop().time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(now + FLUSH_INTERVAL_S - now % FLUSH_INTERVAL_S):
                    await ended.wait()
            with contextlib.suppress(StorageError):
                await self._flush()

    async def _flush(self) -> None:
        events = list(self._unflushed)
        if events:
            await self._keeper.append_events(self.log.response_id, events)
            del self._unflushed[: len(events)]

    async def _finish(self, end: TurnEnd) -> None:
        try:
            closing = await self._stored(end)
        except Exception as error:  # noqa: BLE001  whatever failed, who reads the log is told an end
            _log.error("response %s could not be stored", self.log.response_id, exc_info=error)
            closing = [self._unstored(end, error)]
        self.log.publish(closing)

    async def _stored(self, end: TurnEnd) -> list[Event]:
        """The closing events, committed."""
        now = self._clock()
        closing = self._closing(end, now)
        finished = FinishedResponse(
            self.log.response_id, end.status, end.message, now, end.usage, end.error, end.reason
        )
        await self._keeper.finish_response(finished, [*self._unflushed, *closing])
        return closing

    def _closing(self, end: TurnEnd, now: float) -> list[Event]:
        return self._writer.end(
            end.status,
            completed_at=now,
            usage=end.usage,
            error=end.error,
            incomplete_reason=end.reason,
            logprobs=end.logprobs,
        )

    def _unstored(self, end: TurnEnd, error: Exception) -> Event:
        """The end of a turn that could not be committed: it failed, whatever the model said."""
        number = len(self.log)
        api_error = as_api_error(error)
        told = error_object(api_error.code, api_error.message)
        response = response_object(self._draft, "failed", usage=end.usage, error=told)
        body = {"type": "response.failed", "sequence_number": number, "response": response}
        return Event(number, "response.failed", compact(body))
