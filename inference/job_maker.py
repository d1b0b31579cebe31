"""From a request that was checked and encoded to a job for the scheduler: its answers, samplers and beams."""

from collections.abc import Sequence
from dataclasses import replace

from idefics_chat.inference.answer import Answer
from idefics_chat.inference.beam_search import BeamSearch, Stops
from idefics_chat.inference.family import EncodedImage, Family, PreparedImage
from idefics_chat.inference.job import Job, Sink
from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.logprobs import LogprobRecorder
from idefics_chat.inference.prompt_encoder import EncodedPrompt
from idefics_chat.inference.requests import GenerationRequest, TokenLogprob
from idefics_chat.inference.sampling import Sampler, seed_of


class JobMaker:
    """Makes jobs for one model."""

    def __init__(self, loaded: LoadedModel, family: Family) -> None:
        self._loaded = loaded
        self._family = family
        self._banned = frozenset(loaded.facts.control_ids[token] for token in family.banned_tokens)

    def make(
        self,
        request: GenerationRequest,
        prompt: EncodedPrompt,
        images: dict[str, PreparedImage | EncodedImage],
        sink: Sink,
        max_tokens: int,
        arrived_s: float,
        scored: bool = False,
    ) -> Job:
        """A job; `scored`: the last run of its prompt is to be scored, and of what stands before it that is kept which
        another can use again."""
        sampling = request.sampling
        scored_from = len(prompt) - prompt.run_lengths[-1] if scored else None
        return Job(
            prompt=prompt,
            places=self._family.places(prompt.images),
            images=images,
            answers=[self._answer(request, prompt, max_tokens) for _ in range(sampling.n)],
            samplers=self._samplers(request, prompt),
            sink=sink,
            max_tokens=max_tokens,
            beams=self._beams(request, max_tokens) if sampling.num_beams > 1 else None,
            recorder=self._recorder(request),
            group=request.cache_key,
            kept_tokens=_kept_tokens(request, prompt) if scored_from is None else max(0, scored_from - 1),
            deadline_s=None if request.timeout_s is None else arrived_s + request.timeout_s,
            arrived_s=arrived_s,
            scored_from=scored_from,
        )

    def _answer(self, request: GenerationRequest, prompt: EncodedPrompt, max_tokens: int) -> Answer:
        backend, end_ids = self._loaded.facts.backend, self._loaded.end_ids
        before = prompt.ids[-prompt.run_lengths[-1] :] if request.continues else ()
        return Answer(backend, end_ids, max_tokens, _stops(request), request.prompt.answer_prefix, before)

    def _samplers(self, request: GenerationRequest, prompt: EncodedPrompt) -> list[Sampler]:
        """One for each answer that is drawn apart; one for all beams."""
        sampling = request.sampling
        bad_words = [self._ids_of_word(form) for form in in_both_places(request.bad_words)]
        return [
            Sampler(
                replace(sampling, seed=seed_of(sampling.seed, index)),
                prompt.ids,
                self._banned,
                [word for word in bad_words if word],
                self._loaded.end_ids,
            )
            for index in range(1 if sampling.num_beams > 1 else sampling.n)
        ]

    def _ids_of_word(self, word: str) -> list[int]:
        """As `bad_words_ids` are made for `generate`: by the tokenizer, with nothing added."""
        ids: list[int] = self._loaded.tokenizer(word, add_special_tokens=False).input_ids
        return ids

    def _beams(self, request: GenerationRequest, max_tokens: int) -> BeamSearch[TokenLogprob]:
        sampling = request.sampling
        return BeamSearch(
            sampling.num_beams,
            self._loaded.end_ids,
            max_tokens,
            sampling.length_penalty,
            sampling.early_stopping,
            self._beam_stops(request) if _stops(request) else None,
        )

    def _beam_stops(self, request: GenerationRequest) -> Stops:
        """Whether a stop string is whole with the last token."""
        backend, prefix, stops = self._loaded.facts.backend, request.prompt.answer_prefix, _stops(request)

        def has_stop(ids: Sequence[int]) -> bool:
            text = backend.decode(list(ids), skip_special_tokens=True).removeprefix(prefix)
            return any(stop in text for stop in stops)

        return lambda ids: has_stop(ids) and not has_stop(ids[:-1])

    def _recorder(self, request: GenerationRequest) -> LogprobRecorder | None:
        return None if request.logprobs is None else LogprobRecorder(self._loaded.facts.backend, request.logprobs)


def _kept_tokens(request: GenerationRequest, prompt: EncodedPrompt) -> int | None:
    """Tokens of the runs that are kept, and those at the edge of an image that follows: they are the same for any."""
    if request.kept_runs is None:
        return None
    end = sum(prompt.run_lengths[: request.kept_runs])
    return next((place for place in range(end, len(prompt)) if prompt.images[place] is not None), end)


def in_both_places(words: Sequence[str]) -> tuple[str, ...]:
    """Words at a beginning and behind a space, which a tokenizer tells apart."""
    return tuple(form for word in words for form in dict.fromkeys((word, f" {word.lstrip(' ')}")))


def _stops(request: GenerationRequest) -> tuple[str, ...]:
    """Texts at which an answer ends: those that were asked for, and those of the prompt's layout."""
    return (*request.stop, *request.prompt.stop)
