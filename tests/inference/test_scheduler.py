"""The scheduler against a cold stock `generate`: whatever joins, leaves or is dropped, the tokens are the same."""

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from idefics_chat.inference.errors import GenerationFailed
from idefics_chat.inference.family import EncodedImage, PreparedImage
from idefics_chat.inference.feature_files import FeatureFiles, FeatureStore, StoredFeatures
from idefics_chat.inference.image_encoding import ImageEncoding
from idefics_chat.inference.kv_slots import Chunk, DecodeStep, attention_mask, position_ids
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits
from idefics_chat.inference.slot_rows import SlotRows

CONTEXT = 200
DIGESTS = ["a" * 64, "b" * 64, "c" * 64]

OPTIONS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
    {"n": 2},
    {"num_beams": 2},
    {"num_beams": 3, "n": 2, "length_penalty": 2.0, "repetition_penalty": 1.3},
    {"num_beams": 4, "early_stopping": True, "length_penalty": -1.0},
    {"num_beams": 2, "early_stopping": "never", "no_repeat_ngram_size": 2, "min_new_tokens": 2},
]
"""How answers are asked for: most as they are, some penalised, some as several sequences."""

words = st.lists(st.integers(0, 10**6), min_size=1, max_size=6)
parts = st.lists(words | st.sampled_from(DIGESTS), min_size=1, max_size=3)
questions = st.tuples(
    st.integers(0, 9),
    st.lists(words | st.sampled_from(DIGESTS), max_size=2),
    st.integers(0, 6),
    st.sampled_from(OPTIONS),
    st.sampled_from(["one", "one", "two", None]),
    st.sampled_from([None, None, 0, 4, 30]),
)


class Faulty:
    """A family in which memory runs out when it is told to, and in which what is done for `bad` jobs goes wrong."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self.scheduler: Any = None
        self.short_of_memory: set[str] = set()
        self.bad: dict[Any, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def encode(self, prepared: Any) -> Any:
        self._allocate("encode")
        return self._family.encode(prepared)

    def reserve_rows(self, rows: int) -> None:
        self._allocate("reserve_rows")
        self._family.reserve_rows(rows)

    def prefill(self, ids: Any, places: Any, images: Any, slots: Any, step: Any, keep: int = 1) -> Any:
        self._allocate("prefill")
        spoilt = self._spoilt(range(step.first, step.first + len(ids)))
        logits = self._family.prefill(ids, places, images, slots, step, keep)
        for row in spoilt:
            index = row - step.first
            self._spoil(logits[index], slots, row, slice(step.starts[index], step.ends[index]))
        return logits

    def decode(self, ids: Any, slots: Any, step: Any) -> Any:
        self._allocate("decode")
        spoilt = self._spoilt(range(len(self.scheduler.rows.decoding)))
        logits = self._family.decode(ids, slots, step)
        for row in spoilt:
            self._spoil(logits[row], slots, row, slice(step.positions[row], step.positions[row] + 1))
        return logits

    def _allocate(self, part: str) -> None:
        if part in self.short_of_memory:
            self.short_of_memory.remove(part)
            raise torch.OutOfMemoryError(part)

    def _spoilt(self, rows: range) -> list[int]:
        bad = {branch.row: kind for job, kind in self.bad.items() for branch in job.branches if branch.row in rows}
        if "raises" in bad.values():
            raise RuntimeError("a row that is bad")
        return list(bad)

    def _spoil(self, logits: Any, slots: Any, row: int, written: slice) -> None:
        logits[:] = torch.nan
        for keys, values in slots.layers:
            keys[row, :, written] = values[row, :, written] = torch.nan


class Clock:
    """A clock that goes as it likes, and always the same way for a seed: how much is read in a step follows from what
    steps took, and a run that failed must fail again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._now_s = 0.0

    def __call__(self) -> float:
        self._now_s += self._random.choice((1e-4, 1e-3, 1e-2))
        return self._now_s


def flat(pieces: list[list[Any]]) -> list[Any]:
    return [token for piece in pieces for token in piece]


class Conversations(RuleBasedStateMachine):
    """Random conversations on one scheduler. `kit` is set by the test."""

    kit: Any

    def __init__(self) -> None:
        super().__init__()
        # Conversations are pieces, each the tokens of a text, of an image or of an answer.
        self.conversations: list[list[list[Any]]] = []
        self.running: list[tuple[Any, list[Any], int, dict[str, Any], int]] = []

    @initialize(
        rows=st.integers(1, 6),
        prefill=st.sampled_from([1, 5, 64, 300, 300]),
        parked_tokens=st.sampled_from([0, 60, 2000, 2000]),
        host_tokens=st.sampled_from([0, 80, 2000]),
        feature_bytes=st.sampled_from([0, 20_000, 10**9]),
        disk_bytes=st.sampled_from([0, 2_000, 20_000, 10**9]),
        fixed_shapes=st.booleans(),
        pace=st.integers(0, 999),
        openings=st.lists(parts, min_size=2, max_size=4),
    )
    def start(
        self,
        rows: int,
        prefill: int,
        parked_tokens: int,
        host_tokens: int,
        feature_bytes: int,
        disk_bytes: int,
        fixed_shapes: bool,
        pace: int,
        openings: list[Any],
    ) -> None:
        token_bytes = self.kit.family.cache_shape.token_bytes
        limits = SchedulerLimits(
            max_running=rows,
            kv_bytes=(CONTEXT + parked_tokens) * token_bytes,
            host_bytes=host_tokens * token_bytes,
            feature_bytes=feature_bytes,
            prefill_tokens=prefill,
        )
        self.limits = limits
        self.folder = Path(tempfile.mkdtemp(prefix="idefics-chat-test-"))
        self.disk_bytes, self.fixed_shapes = disk_bytes, fixed_shapes
        self.clock = Clock(pace)
        self.start_up()
        self.conversations = [self.pieces(parts) for parts in openings]

    def start_up(self) -> None:
        self.files = FeatureFiles(self.folder, self.disk_bytes, "the kit's model")
        self.store = FeatureStore(self.kit.family, self.files)
        self.family: Any = Faulty(self.kit.family)
        self.scheduler = Scheduler(
            self.family,
            self.limits,
            CONTEXT,
            clock=self.clock,
            keep_features=self.keep,
            fixed_shapes=self.fixed_shapes,
        )
        self.family.scheduler = self.scheduler

    def keep(self, digest: str, prepared: PreparedImage, encoded: EncodedImage) -> None:
        self.files.put(digest, StoredFeatures(prepared.token_ids, encoded.tensors))

    def finish(self) -> None:
        for _ in range(10_000):
            if self.scheduler.is_idle:
                break
            self.scheduler.step()
        self.settle()
        assert not self.running, "a request was never ended"

    @rule()
    def restart(self) -> None:
        """Everything is forgotten but what lies on disk."""
        self.finish()
        self.files.close()
        self.start_up()

    @rule(which=st.integers(0, 9), place=st.integers(0, 10**6))
    def damage_a_file(self, which: int, place: int) -> None:
        if paths := sorted(self.folder.iterdir()):
            path = paths[which % len(paths)]
            data = bytearray(path.read_bytes())
            data[place % len(data)] ^= 1
            path.write_bytes(data)

    def pieces(self, parts: list[Any]) -> list[list[Any]]:
        return [self.kit.image(part) if isinstance(part, str) else self.kit.text(part) for part in parts]

    @rule(which=st.integers(0, 9), new=parts, keep=st.floats(0, 1))
    def edit_or_fork(self, which: int, new: list[Any], keep: float) -> None:
        """A conversation whose end is another one; the beginning may be reused."""
        old = self.conversations[which % len(self.conversations)]
        self.conversations[which % len(self.conversations)] = [*old[: int(keep * len(old))], *self.pieces(new)]

    @rule(which=st.integers(0, 9), one=st.sampled_from(DIGESTS), other=st.sampled_from(DIGESTS))
    def show_another_image(self, which: int, one: str, other: str) -> None:
        """The same conversation about another image: all ids may be the same."""
        if len(self.kit.image(one)) == len(self.kit.image(other)):
            old = self.conversations[which % len(self.conversations)]
            changed = [self.kit.image(other) if piece == self.kit.image(one) else piece for piece in old]
            self.conversations[which % len(self.conversations)] = changed

    @rule(asked=st.lists(questions, min_size=1, max_size=6), steps=st.integers(0, 8))
    def ask(self, asked: list[tuple[int, list[Any], int, dict[str, Any], str | None, int | None]], steps: int) -> None:
        """Several requests at once, each about a conversation with something new at its end."""
        for which, new, count, options, group, kept in asked:
            index = which % len(self.conversations)
            conversation = [*self.conversations[index], *self.pieces(new)]
            tokens = flat(conversation)
            if len(self.running) < 8 and self.fits(tokens, count, options):
                job = self.kit.job(tokens, count, group, self.stored_images(), kept, **options)
                self.conversations[index] = conversation
                self.running.append((job, tokens, count, options, index))
                self.scheduler.submit(job)
        self.step(steps)

    def stored_images(self) -> dict[str, EncodedImage]:
        found = {digest: self.store.find(digest) for digest in DIGESTS}
        return {digest: stored[1] for digest, stored in found.items() if stored is not None}

    def fits(self, tokens: list[Any], count: int, options: dict[str, Any]) -> bool:
        """Whether an engine would take the request: what could never run is refused before it gets here."""
        rows = max(options.get("n", 1), options.get("num_beams", 1))
        kv_tokens = self.limits.kv_bytes // self.kit.family.cache_shape.token_bytes
        needed = len(tokens) + count
        return needed < CONTEXT and rows <= self.limits.max_running and rows * needed <= kv_tokens

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.scheduler.step()
            self.scheduler.check()
        self.settle()

    @rule(part=st.sampled_from(["encode", "reserve_rows", "prefill", "decode"]))
    def memory_runs_out(self, part: str) -> None:
        """The next time that this is done; what is kept for later goes, and answers are what they are."""
        self.family.short_of_memory.add(part)

    @rule(which=st.integers(0, 9), kind=st.sampled_from(["raises", "is not finite"]))
    def go_wrong(self, which: int, kind: str) -> None:
        """From its next step on nothing can be done for one request. It ends with an error, and no other does."""
        if self.running:
            self.family.bad[self.running[which % len(self.running)][0]] = kind

    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        if self.running:
            job = self.running[which % len(self.running)][0]
            job.sink.is_cancelled = True
            self.scheduler.step()
            assert len(job.sink.results) == 1, "a cancelled request was not ended within one step"
            self.settle()

    def settle(self) -> None:
        """Look at those that ended: their tokens, and that they ended once. Answers go on as conversations."""
        for entry in list(self.running):
            job, tokens, count, options, index = entry
            assert len(job.sink.results) + len(job.sink.errors) <= 1
            if job.sink.errors:
                assert job in self.family.bad
                assert isinstance(job.sink.errors[0], GenerationFailed)
                self.running.remove(entry)
            if not job.sink.results:
                continue
            self.running.remove(entry)
            result = job.sink.results[0]
            self.compare(result, tokens, count, options)
            assert job.sink.items[-1] is result
            assert result.usage.cached_tokens < len(tokens)
            if flat(self.conversations[index]) == tokens:
                self.conversations[index].append([(token, None) for token in result.token_ids])
            if len(flat(self.conversations[index])) > CONTEXT - 20:
                self.conversations[index] = self.conversations[index][:2]

    def compare(self, result: Any, tokens: list[Any], count: int, options: dict[str, Any]) -> None:
        answers = options.get("n", 1)
        expected = self.kit.references(tokens, count, **options) if count else [[]] * answers
        assert len(result.choices) == len(expected) == answers
        assert result.token_ids == result.choices[0].token_ids
        for choice, ids in zip(result.choices, expected, strict=True):
            if choice.finish_reason != "cancelled":
                assert list(choice.token_ids) == ids
            elif "num_beams" not in options:
                assert list(choice.token_ids) == ids[: len(choice.token_ids)]

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()
            on_disk = sum(path.stat().st_size for path in self.folder.iterdir())
            assert on_disk == self.files.used_bytes <= self.disk_bytes

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            self.finish()
            self.files.close()
            shutil.rmtree(self.folder)


def explore(kit: Any, examples: int = 10) -> None:
    """Run the machine on a kit; raises what its checks raise."""

    class Machine(Conversations):
        pass

    Machine.kit = kit
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_answer_is_that_of_a_cold_generate(kit: Any) -> None:
    explore(kit)


def test_every_answer_is_that_of_a_cold_generate_under_eager_attention(kit: Any, eager: None) -> None:
    explore(kit, 4)


@pytest.fixture
def eager(kit: Any) -> Iterator[None]:
    """The model under eager attention, which adds its mask."""
    model = kit.loaded.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation(before)


def ask_about_one_image_then_another(kit: Any) -> None:
    """Two prompts that differ in nothing but the image, in one group; their answers must differ as stock's do."""
    scheduler = Scheduler(kit.family, SchedulerLimits(), CONTEXT)
    prompts = [[*kit.text([3, 1, 4]), *kit.image(digest), *kit.text([1, 5])] for digest in DIGESTS[:2]]
    expected = [kit.reference(tokens, 30) for tokens in prompts]
    if expected[0] == expected[1]:
        raise RuntimeError("this model answers alike about both images; the test would show nothing")
    for tokens, answer in zip(prompts, expected, strict=True):
        job = kit.job(tokens, 30, "group")
        scheduler.submit(job)
        while not scheduler.is_idle:
            scheduler.step()
        assert list(job.sink.results[0].token_ids) == answer


def test_what_was_kept_of_one_image_is_not_used_for_another(kit: Any) -> None:
    ask_about_one_image_then_another(kit)


# The tests of the test: each of these mistakes is easy to make and must be caught.


def test_a_prefix_compared_by_ids_alone_is_caught(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idefics_chat.inference.job.token_keys", lambda ids, images: list(ids))
    with pytest.raises(AssertionError):
        ask_about_one_image_then_another(kit)


def test_the_features_of_the_wrong_image_are_caught(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {DIGESTS[0]: DIGESTS[1], DIGESTS[1]: DIGESTS[0]}
    right = ImageEncoding.encode

    def swapped(encoding: ImageEncoding, job: Any, digests: set[str]) -> bool:
        job.images = {digest: kit.images[wrong.get(digest, digest)] for digest in job.images}
        while right(encoding, job, digests):
            pass
        return False

    monkeypatch.setattr(ImageEncoding, "encode", swapped)
    with pytest.raises(AssertionError):
        explore(kit, 400)


def test_a_boolean_mask_under_eager_attention_is_caught(kit: Any, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def boolean(step: Any, shape: Any, implementation: str, device: Any) -> Any:
        return attention_mask(step, shape, "sdpa", device)

    monkeypatch.setattr(f"{type(kit.family)._forward.__module__}.attention_mask", boolean)
    with pytest.raises(AssertionError):
        explore(kit, 400)


def test_prompts_that_end_in_different_columns_are_caught(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def filled_up_on_the_right(step: Chunk, tokens: Any) -> list[Any]:
        return [*tokens, *[tokens[-1]] * (step.width - len(tokens))]

    monkeypatch.setattr(Chunk, "filled_up", filled_up_on_the_right)
    with pytest.raises(AssertionError):
        explore(kit, 400)


def test_a_prompt_read_beside_others_that_sees_as_far_as_they_is_caught(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_first_row(step: Any, shape: Any, implementation: str, device: Any) -> Any:
        right = attention_mask(step, shape, implementation, device)
        return right[:1].expand_as(right) if isinstance(step, Chunk) else right

    monkeypatch.setattr(f"{type(kit.family)._forward.__module__}.attention_mask", of_the_first_row)
    with pytest.raises(AssertionError):
        explore(kit, 400)


def test_a_row_that_counts_as_holding_what_was_overwritten_is_caught(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SlotRows, "_forget", lambda rows, written: list(written))
    with pytest.raises(AssertionError):
        explore(kit, 400)


@pytest.mark.parametrize("kind", [Chunk, DecodeStep])
def test_a_position_that_is_off_by_one_is_caught(kit: Any, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    def shifted(step: Any, device: Any) -> Any:
        right = position_ids(step, device)
        return right + (isinstance(step, kind) and int(right[0, 0]) > 0)

    monkeypatch.setattr(f"{type(kit.family)._forward.__module__}.position_ids", shifted)
    with pytest.raises(AssertionError):
        explore(kit, 400)
