"""A request on its way through the scheduler, with all that is known of it there.

A request is one sequence, or several that share its prompt: beams, or answers that are drawn apart.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from torch import Tensor

from idefics_chat.inference.answer import Answer
from idefics_chat.inference.beam_search import BeamSearch
from idefics_chat.inference.errors import InferenceError
from idefics_chat.inference.family import EncodedImage, Place, PreparedImage
from idefics_chat.inference.logprobs import LogprobRecorder, log_probabilities
from idefics_chat.inference.prefix_store import TokenKey, common_length, token_keys
from idefics_chat.inference.prompt_encoder import EncodedPrompt
from idefics_chat.inference.requests import Choice, FinishReason, GenerationResult, TextDelta, TokenLogprob, Usage
from idefics_chat.inference.sampling import Sampler, checked

Item = TextDelta | GenerationResult | InferenceError


class Sink(Protocol):
    """Where a job's results go, and where its cancellation is seen."""

    @property
    def is_cancelled(self) -> bool: ...

    def put(self, item: Item) -> None: ...


@dataclass(slots=True, eq=False)
class Branch:
    """One sequence of a request. `filled` tokens of `ids` have their keys and values in the cache, in row `row`; `ids`
    grows with what is generated."""

    job: "Job"
    index: int
    ids: list[int]
    keys: list[TokenKey]
    row: int = -1
    filled: int = 0

    def add(self, token_id: int) -> None:
        """A token that is to be run next."""
        self.ids.append(token_id)
        self.keys.append(token_id)

    def continue_from(self, ids: Sequence[int], keys: Sequence[TokenKey], token_id: int) -> None:
        """Become another sequence of the same length, with one more token."""
        self.ids, self.keys = [*ids, token_id], [*keys, token_id]


@dataclass(slots=True, eq=False)
class Job:
    """One request. `images` holds each image of the prompt, prepared or encoded already.

    `answers` are those that are asked for. With `beams` there is one sampler, for the penalties; else one for each
    answer. What was computed is kept for others of its `group`, of the first `kept_tokens` where that is set. Where
    `scored_from` is set, `score` becomes the log-likelihood of the prompt's tokens from there on, given those before.
    """

    prompt: EncodedPrompt
    places: list[Place | None]
    images: dict[str, PreparedImage | EncodedImage]
    answers: list[Answer]
    samplers: list[Sampler]
    sink: Sink
    max_tokens: int
    beams: BeamSearch[TokenLogprob] | None = None
    recorder: LogprobRecorder | None = None
    group: Hashable | None = None
    kept_tokens: int | None = None
    deadline_s: float | None = None
    arrived_s: float = 0.0
    scored_from: int | None = None
    score: float = 0.0
    branches: list[Branch] = field(init=False)
    cached_tokens: int = 0
    _logprobs: list[list[TokenLogprob]] = field(init=False)
    _scores: list[float | None] = field(init=False)
    _given: list[int] = field(init=False)
    _cut_short: FinishReason | None = None

    def __post_init__(self) -> None:
        keys = token_keys(self.prompt.ids, self.prompt.images)
        self.branches = [Branch(self, index, list(self.prompt.ids), list(keys)) for index in range(self.width)]
        self._logprobs = [[] for _ in self.answers]
        self._scores = [None for _ in self.answers]
        self._given = [0 for _ in self.answers]

    @property
    def width(self) -> int:
        """Rows of the cache that it takes once its prompt is read."""
        return len(self.answers) if self.beams is None else self.beams.width

    @property
    def lead(self) -> Branch:
        """The sequence in whose row the prompt is read."""
        return self.branches[0]

    @property
    def needed_tokens(self) -> int:
        """Tokens of cache that each sequence may come to use."""
        return len(self.prompt) + self.max_tokens

    @property
    def reusable_tokens(self) -> int:
        """Tokens of the prompt that need not be run: of the others the logits are wanted, of the last one always."""
        return (len(self.prompt) if self.scored_from is None else self.scored_from) - 1

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is in the cache, so that the request can decode."""
        return self.lead.filled >= len(self.prompt)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to choose."""
        if self.beams is not None and self.beams.is_over:
            return True
        return all(answer.finish_reason is not None for answer in self.answers)

    @property
    def is_greedy(self) -> bool:
        """Whether each choice is just the likeliest token that is not banned, of one answer, and nothing else is asked
        for."""
        return self.width == 1 and self.beams is None and self.recorder is None and self.samplers[0].is_greedy

    @property
    def banned(self) -> Tensor:
        """Ids that are never chosen."""
        return self.samplers[0].banned

    def is_given_up(self, now_s: float) -> bool:
        """Whether it was cancelled or is past its deadline."""
        return self.sink.is_cancelled or (self.deadline_s is not None and now_s >= self.deadline_s)

    def digests_from(self, start: int, end: int | None = None) -> set[str]:
        """Which images the tokens of the prompt from `start` on stand for or look at."""
        return {place[0] for place in self.places[start:end] if place is not None}

    def is_done(self, branch: Branch) -> bool:
        """Whether that sequence has ended while others may go on."""
        return self.beams is None and self.answers[branch.index].finish_reason is not None

    def encoded_images(self) -> Mapping[str, EncodedImage]:
        """Those images that are encoded."""
        return {digest: image for digest, image in self.images.items() if isinstance(image, EncodedImage)}

    def choose(self, branch: Branch, logits: Tensor) -> None:
        """The next token of one of several answers, from logits `(vocabulary,)`."""
        token_id = self.samplers[branch.index].choose(logits)
        if self.recorder is not None:
            self._logprobs[branch.index].append(self.recorder.note(log_probabilities(logits), token_id))
        self.take(branch, token_id)

    def take(self, branch: Branch, token_id: int) -> None:
        """Add a chosen token: to the answer, and to what comes next unless the answer ended with it."""
        self._stream(branch.index, self.answers[branch.index].push(token_id))
        if not self.is_done(branch):
            branch.add(token_id)

    def choose_beams(self, logits: Tensor) -> list[int]:
        """The next tokens of all beams, from logits `(width, vocabulary)`; which beam each continues."""
        assert self.beams is not None
        chances = log_probabilities(checked(logits))
        note = None if self.recorder is None else partial(_noted, self.recorder, chances.clone())
        tokens, sources = self.beams.step(self.samplers[0].processed(self.beams.said, chances), note)
        old = [(branch.ids, branch.keys) for branch in self.branches]
        for branch, token, source in zip(self.branches, tokens, sources, strict=True):
            branch.continue_from(*old[source], token)
        return sources

    def finish(self, reason: FinishReason | None = None) -> None:
        """Give out the rest of the answers and the result."""
        if self.beams is not None:
            # A finished beam may be the best so far, and a better one was cut short.
            self._cut_short = None if self.beams.is_over else reason
            said = self._take_best(self.beams)
        else:
            said = [""] * len(self.answers)
        for index, answer in enumerate(self.answers):
            self._stream(index, said[index] + answer.finish(reason))
        self.sink.put(self._result())

    def most_alike(self) -> Branch:
        """The sequence that has most in common with the first answer: the one to keep for the next turn."""
        if self.beams is None:
            return self.lead
        said = [*self.prompt.ids, *self.beams.so_far(1)[0].ids]
        return max(self.branches, key=lambda branch: common_length(branch.ids, said))

    def _take_best(self, beams: BeamSearch[TokenLogprob]) -> list[str]:
        """Make the best beams the answers; the text of each that is settled."""
        said = []
        for index, found in enumerate(beams.so_far(len(self.answers))):
            self._logprobs[index], self._scores[index] = list(found.notes), found.score
            said.append("".join(map(self.answers[index].push, found.ids)))
        return said

    def _stream(self, index: int, piece: str) -> None:
        if not piece:
            return
        shown = self._logprobs[index][: self.answers[index].shown_tokens]
        fresh, self._given[index] = tuple(shown[self._given[index] :]), len(shown)
        self.sink.put(TextDelta(piece, index, fresh))

    def _result(self) -> GenerationResult:
        choices = tuple(self._choice(index) for index in range(len(self.answers)))
        usage = Usage(
            input_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            image_tokens=sum(digest is not None for digest in self.prompt.images),
            output_tokens=sum(answer.output_tokens for answer in self.answers),
        )
        first = choices[0]
        return GenerationResult(first.text, first.token_ids, first.finish_reason, usage, choices)

    def _choice(self, index: int) -> Choice:
        answer = self.answers[index]
        assert answer.finish_reason is not None
        logprobs = tuple(self._logprobs[index][: answer.shown_tokens])
        reason = self._cut_short or answer.finish_reason
        return Choice(answer.text, answer.token_ids(), reason, logprobs, self._scores[index])


def _noted(recorder: LogprobRecorder, chances: Tensor, beam: int, token_id: int) -> TokenLogprob:
    return recorder.note(chances[beam], token_id)
