"""Runs tasks on a server, over `/v1/tasks`: the same tasks, settings and results as in this process."""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import ValidationError

from idefics_chat.conversation.messages import ImagePart, Message, Part
from idefics_chat.conversation.tasks import Caption, Classify, Continue, FewShot, Instruct, Question, Story, Task
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.inference.task_runner import LONGEST_PAUSE_S, Order, TaskResult, TaskSettings
from idefics_chat.server.sampling_fields import SamplingFields
from idefics_chat.server.task_objects import TaskObject, result_of

Json = dict[str, Any]
DataUrl = Callable[[str], Awaitable[str]]

CONNECT_TIMEOUT_S = 10.0
RETRIES = 3
"""How often a request is sent again where the connection broke before the answer: a task changes nothing."""

TOO_MUCH, BUSY = 429, 503
LONGEST_WAIT_S = 60.0
"""How long at most to heed a server that names a time: its limits may be raised meanwhile."""

_SECONDS = re.compile("[0-9]{1,9}")


class ServerError(Exception):
    """A server that cannot be reached or that refused; the message is its sentence, `code` its code, `param` the place
    in the request that it is about, `retry_after_s` when it asks to come again."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 0,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def ends_all(self) -> bool:
        """Whether the next request would meet the same: nobody there, going down, or no key."""
        return self.status in (0, 401, 403) or self.code in ("server_stopping", "unknown_url")

    @property
    def asks_to_wait(self) -> bool:
        """Whether the same request may be served later."""
        return self.status in (TOO_MUCH, BUSY) and self.code != "server_stopping"

    @property
    def pause_s(self) -> float:
        """After how long to ask again: when a limit allows it; a place in a queue may be free much sooner than it is
        foretold, so that it is asked for as often as in this process."""
        if self.status != TOO_MUCH:
            return LONGEST_PAUSE_S
        return min(LONGEST_WAIT_S, max(LONGEST_PAUSE_S, self.retry_after_s or 0))


OnWait = Callable[[ServerError], None]
"""Hears of every refusal after which a task waits."""


class RemoteRunner:
    """Asks one server. An async context manager."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        on_wait: OnWait | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = base_url(url)
        self._on_wait = on_wait or (lambda _: None)
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=64),
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def model_name(self) -> str:
        """The id of the server's model. Raises ServerError."""
        models = await self._asked("GET", "/v1/models")
        return str(models["data"][0]["id"])

    async def run(self, order: Order, *, patient: bool = False) -> TaskResult:
        """Run one task. `patient`: ask again while the server is busy.

        Raises:
            ServerError
        """

        async def data_url(digest: str) -> str:
            return f"data:application/octet-stream;base64,{base64.b64encode(await order.load_image(digest)).decode()}"

        body = {**await task_body(order.task, data_url), **options_body(order.settings)}
        if isinstance(order.task, Classify):
            body |= {"rank": order.settings.rank, "normalization": order.settings.normalization}
        while True:
            try:
                return result_of(
                    TaskObject.model_validate(await self._asked("POST", f"/v1/tasks/{order.task.name}", body))
                )
            except ServerError as error:
                if not (patient and error.asks_to_wait):
                    raise
                refusal = error
            except ValidationError as error:
                raise ServerError(
                    "server_error", f"{self.url} gave an answer that is none; is it idefics-chat?"
                ) from error
            self._on_wait(refusal)
            await asyncio.sleep(refusal.pause_s)

    async def _asked(self, method: str, path: str, body: Json | None = None) -> Json:
        for attempt in range(RETRIES):
            try:
                answer = await self._client.request(method, path, json=body)
                break
            except httpx.HTTPError as error:
                if attempt == RETRIES - 1 or isinstance(error, httpx.ConnectError):
                    reason = str(error) or type(error).__name__
                    sentence = f"No answer from {self.url} ({reason}). Is the server running (idefics-chat serve)?"
                    raise ServerError("server_unreachable", sentence) from error
        try:
            value: Json = answer.json()
            if answer.is_success:
                return value
            error_body = value["error"]
            code, message = str(error_body["code"]), str(error_body["message"])
            raise ServerError(code, message, answer.status_code, retry_after_s=_retry_after_s(answer))
        except (ValueError, KeyError, TypeError):
            sentence = f"{self.url} answered with status {answer.status_code} and no reason; is it idefics-chat?"
            wait_s = _retry_after_s(answer)
            raise ServerError("server_error", sentence, answer.status_code, retry_after_s=wait_s) from None


def _retry_after_s(answer: httpx.Response) -> float | None:
    """What the answer's Retry-After says (RFC 9110, section 10.2.3), where it is a number of seconds."""
    said = answer.headers.get("retry-after", "").strip()
    return float(said) if _SECONDS.fullmatch(said) else None


def base_url(url: str) -> str:
    """The server's own address, of whatever URL of it was given; http where no scheme is."""
    text = url.strip().rstrip("/").removesuffix("/responses").removesuffix("/v1")
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    return f"{ {'ws': 'http', 'wss': 'https'}.get(scheme, scheme) }://{rest}"


async def task_body(task: Task, data_url: DataUrl) -> Json:
    """The body that asks for the task."""
    match task:
        case Caption(image, prompt):
            return {"image": await data_url(image), "prompt": prompt}
        case Question(image, question):
            return {"image": await data_url(image), "question": question}
        case Classify(image, categories):
            return {"image": await data_url(image), "categories": list(categories)}
        case Story(image):
            return {"image": await data_url(image)}
        case FewShot(image, examples, instruction):
            shown = [{"image": await data_url(example.image), "answer": example.answer} for example in examples]
            return {"image": await data_url(image), "examples": shown, "instruction": instruction}
        case Continue(parts):
            return {"parts": [await _part_body(part, data_url) for part in parts]}
        case Instruct(messages, instructions):
            return {"messages": [await _message_body(m, data_url) for m in messages], "instructions": instructions}


def options_body(settings: TaskSettings) -> Json:
    """The options that differ from what the server would take of itself."""
    usual, given = asdict(SamplingParams()), asdict(settings.sampling)
    # A story's beams are the server's own choice too, so that they are always named.
    body: Json = {
        name: given[name] for name in SamplingFields.model_fields if given[name] != usual[name] or name == "num_beams"
    }
    if settings.max_new_tokens is not None:
        body["max_new_tokens"] = settings.max_new_tokens
    if settings.stop:
        body["stop"] = list(settings.stop)
    if settings.bad_words:
        body["bad_words"] = list(settings.bad_words)
    return body


async def _part_body(part: Part, data_url: DataUrl) -> Json:
    return {"image": await data_url(part.digest)} if isinstance(part, ImagePart) else {"text": part.text}


async def _message_body(message: Message, data_url: DataUrl) -> Json:
    return {"role": message.role, "content": [await _part_body(part, data_url) for part in message.parts]}
