"""Our server beside `transformers serve`: the same weights, the same machine, both over HTTP with the same client.

Two servers run at once and take turns being asked, so that a machine that is busy is busy for both. Ours goes on with
stored conversations; the peer keeps nothing, so its client sends the whole conversation again with each turn.

    python benchmarks/engine_serve.py [--answer-tokens 48] [--plot benchmarks/engine_serve.svg] [--json figures.json]
"""

import argparse
import base64
import contextlib
import io
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
from engine_cases import median
from medium_checkpoint import save_checkpoint, sentence
from openai import OpenAI
from PIL import Image

CONVERSATIONS = 16
CONVERSATION_TURNS = 3
QUESTION_WORDS = 6
TURNS = 12
TALKS = 3
"""Conversations of so many turns, one after the other: three late turns of one alone told little."""

IMAGES_AT = (1, 3, 5, 7)
TURN_ANSWER_TOKENS = 12
LONG_TURNS = 42
LONG_ANSWER_TOKENS = 24
START_S = 180
ASK_S = 600


def picture(seed: int) -> str:
    """A picture of noise as a data URL."""
    noise = Image.effect_noise((256, 256), 20 + seed % 200).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Told:
    """What came of a turn: tokens of the answer, and the seconds to its first text."""

    text: str
    tokens: int
    first_s: float
    prompt_tokens: int


class Talk(Protocol):
    """A conversation with one server."""

    def ask(self, text: str, image: str | None, max_tokens: int) -> Told: ...


@dataclass
class OurTalk:
    """Goes on from the response before."""

    client: OpenAI
    model: str
    last_id: str | None = None

    def ask(self, text: str, image: str | None, max_tokens: int) -> Told:
        parts: list[Any] = [] if image is None else [{"type": "input_image", "image_url": image, "detail": "auto"}]
        parts.append({"type": "input_text", "text": text})
        more: Any = {} if self.last_id is None else {"previous_response_id": self.last_id}
        started = time.perf_counter()
        first_s: float | None = None
        response: Any = None
        said: Any = [{"type": "message", "role": "user", "content": parts}]
        for event in self.client.responses.create(
            model=self.model, input=said, max_output_tokens=max_tokens, temperature=0, stream=True, **more
        ):
            if event.type == "response.output_text.delta" and first_s is None:
                first_s = time.perf_counter() - started
            response = getattr(event, "response", response)
        self.last_id = response.id
        usage = response.usage
        return Told(response.output_text, usage.output_tokens, first_s or 0.0, usage.input_tokens)


@dataclass
class PeerTalk:
    """Sends all that was said with each turn."""

    client: OpenAI
    model: str
    messages: list[Any] = field(default_factory=list)

    def ask(self, text: str, image: str | None, max_tokens: int) -> Told:
        parts: list[Any] = [] if image is None else [{"type": "image_url", "image_url": {"url": image}}]
        self.messages.append({"role": "user", "content": [*parts, {"type": "text", "text": text}]})
        started = time.perf_counter()
        first_s: float | None = None
        pieces: list[str] = []
        usage: Any = None
        for chunk in self.client.chat.completions.create(
            model=self.model, messages=self.messages, max_tokens=max_tokens, temperature=0, stream=True
        ):
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                first_s = first_s or time.perf_counter() - started
                pieces.append(piece)
            usage = chunk.usage or usage
        answer = "".join(pieces)
        self.messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return Told(answer, usage.completion_tokens, first_s or 0.0, usage.prompt_tokens)


@contextlib.contextmanager
def server(command: Sequence[str], ready: str | None) -> Iterator[str]:
    """A server process; what the group of `ready` finds in its output, if that is waited for."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
    try:
        yield "" if ready is None else _wait_for(ready, lines)
    finally:
        process.terminate()
        process.wait(30)


def _pump(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _wait_for(ready: str, lines: "queue.Queue[str | None]") -> str:
    seen = ""
    while (line := lines.get(timeout=START_S)) is not None:
        seen += line
        if (found := re.search(ready, line)) is not None:
            return found.group(1)
    raise RuntimeError(f"a server did not start:\n{seen}")


def _wait_until_healthy(url: str) -> None:
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"nothing answers at {url}")


def many_at_once(talks: Sequence[Talk], turn: int, answer_tokens: int) -> tuple[int, float]:
    """Ask all conversations at once, in their first turn about a picture each; tokens of all answers, and seconds."""
    with ThreadPoolExecutor(len(talks)) as pool:
        started = time.perf_counter()
        asked = [
            pool.submit(talk.ask, sentence(QUESTION_WORDS, 100 * turn + index), shown, answer_tokens)
            for index, (talk, shown) in enumerate(zip(talks, _shown(len(talks), turn), strict=True))
        ]
        tokens = sum(one.result(ASK_S).tokens for one in asked)
        return tokens, time.perf_counter() - started


def _shown(count: int, turn: int) -> list[str | None]:
    return [picture(index) if turn == 0 else None for index in range(count)]


def turn_by_turn(ours: Talk, peer: Talk, seed: int) -> tuple[list[Told], list[Told]]:
    """One long conversation with each, turn about, with pictures and words of its own."""
    told: tuple[list[Told], list[Told]] = ([], [])
    for turn in range(1, TURNS + 1):
        image = picture(100 * seed + turn) if turn in IMAGES_AT else None
        for talk, answers in zip((ours, peer), told, strict=True):
            answers.append(talk.ask(sentence(QUESTION_WORDS, 100 * seed + turn), image, TURN_ANSWER_TOKENS))
    return told


def _late_ratios(ours: Sequence[Told], peer: Sequence[Told]) -> list[float]:
    """How many times longer the peer took to its first token, at turns 10 to 12."""
    late = slice(9, 12)
    return [other.first_s / one.first_s for one, other in zip(ours[late], peer[late], strict=True)]


def long_conversation(talk: Talk) -> list[Told]:
    """A conversation about one picture, so long that its prompt has about 2,000 tokens in the end."""
    return [
        talk.ask(sentence(QUESTION_WORDS, turn), picture(turn) if turn == 1 else None, LONG_ANSWER_TOKENS)
        for turn in range(1, LONG_TURNS + 1)
    ]


def measure(ours: OpenAI, peer: OpenAI, model: str, own_model: str, answer_tokens: int) -> dict[str, Any]:
    """All figures."""
    OurTalk(ours, own_model).ask("warm up", picture(0), 4)
    PeerTalk(peer, model).ask("warm up", picture(0), 4)
    sides = (
        [OurTalk(ours, own_model) for _ in range(CONVERSATIONS)],
        [PeerTalk(peer, model) for _ in range(CONVERSATIONS)],
    )
    told: list[list[tuple[int, float]]] = [[], []]
    for turn in range(CONVERSATION_TURNS):
        for talks, results in zip(sides, told, strict=True):
            results.append(many_at_once(talks, turn, answer_tokens))
        print(f"turn {turn + 1}: tokens and seconds {[results[-1] for results in told]}", flush=True)
    rates = [sum(tokens for tokens, _ in results) / sum(taken_s for _, taken_s in results) for results in told]
    told_in_turns = [turn_by_turn(OurTalk(ours, own_model), PeerTalk(peer, model), talk) for talk in range(TALKS)]
    own, others = told_in_turns[-1]
    long = [told.first_s for told in long_conversation(OurTalk(ours, own_model))]
    return {
        "tokens_s": rates,
        "tokens_s_by_turn": [[tokens / taken_s for tokens, taken_s in results] for results in told],
        "throughput_ratio": rates[0] / rates[1],
        "ours_first_s": [told.first_s for told in own],
        "peer_first_s": [told.first_s for told in others],
        "late_ratio": median([ratio for pair in told_in_turns for ratio in _late_ratios(*pair)]),
        "long_first_s": long,
        "long_ratio": median(long[-5:]) / median(long[1:6]),
        "ours_prompt_tokens": [told.prompt_tokens for told in own],
        "peer_prompt_tokens": [told.prompt_tokens for told in others],
    }


def plot(figures: dict[str, Any], path: Path) -> None:
    """Tokens a second at 16 conversations, and the time to the first token turn by turn."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    names, colours = ("idefics-chat", "transformers serve"), ("#1f6f8b", "#c2703d")
    left.bar_label(left.bar(names, figures["tokens_s"], color=colours), fmt="%.1f")
    left.set(ylabel="tokens a second", title=f"{CONVERSATIONS} image conversations at once")
    turns = range(1, TURNS + 1)
    for name, colour, series in zip(names, colours, ("ours_first_s", "peer_first_s"), strict=True):
        right.plot(turns, figures[series], marker="o", color=colour, label=name)
    right.set(yscale="log", xlabel="turn", ylabel="seconds", title="Time to first token, 4 images by turn 7")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    right.legend(loc="upper left")
    right.margins(y=0.25)
    left.margins(y=0.1)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer-tokens", type=int, default=48, help="of the conversations that run at once")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(save_checkpoint(Path(folder) / "medium"))
        own = [sys.executable, "-c", "from idefics_chat.cli.main import main; main()", "serve", "--port", "0"]
        own += ["--model", model, "--device", "cpu", "--database", f"{folder}/chat.db"]
        stock = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--port", "8377"]
        stock += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32", "--log-level", "info"]
        with server(own, r"ws://(\S+?)/v1/responses") as address, server(stock, None):
            _wait_until_healthy("http://127.0.0.1:8377/health")
            ours = OpenAI(base_url=f"http://{address}/v1", api_key="none", timeout=ASK_S, max_retries=0)
            peer = OpenAI(base_url="http://127.0.0.1:8377/v1", api_key="none", timeout=ASK_S, max_retries=0)
            figures = measure(ours, peer, model, ours.models.list().data[0].id, options.answer_tokens)
    print(f"{CONVERSATIONS} image conversations at once, tokens a second:   {figures['throughput_ratio']:.1f}x")
    for name, rates in zip(("ours", "transformers serve"), figures["tokens_s_by_turn"], strict=True):
        print(f"    {name}, by turn: {[round(rate, 1) for rate in rates]}")
    print(f"first token at turns 10 to 12 with 4 images:     {figures['late_ratio']:.1f}x less")
    for name in ("ours_first_s", "peer_first_s"):
        print(f"    {name}: {[round(value, 3) for value in figures[name]]}")
    print(f"    prompt tokens, ours {figures['ours_prompt_tokens']}, the peer's {figures['peer_prompt_tokens']}")
    print(f"first token at turns 38 to 42 over turns 2 to 6, ours:  {figures['long_ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.plot:
        plot(figures, options.plot)


if __name__ == "__main__":
    main()
