import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import IdeficsProcessor
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, TextRun, TokenRun
from idefics_chat.inference.prompt_encoder import PromptEncoder
from idefics_chat.inference.text_encoder import AFTER, BEFORE, TextEncoder
from idefics_chat.inference.tokenizer_facts import TokenizerFacts, describe_tokenizer, fingerprint

DIGESTS = ["a" * 64, "b" * 64]

harmless = (
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
    | st.lists(
        st.sampled_from(["the", " ", "  ", "\n", "fox", "def f(x):", "    ", "é", "你好", "👍🏽", "\t", "_"]),
        min_size=1,
    ).map("".join)
).filter(lambda text: "://" not in text and "<" not in text and "\ue000" not in text)
question = st.lists(harmless | st.sampled_from(DIGESTS), min_size=1, max_size=4)
turns = st.lists(st.tuples(question, harmless), max_size=3).flatmap(
    lambda pairs: question.map(lambda last: [*[turn for pair in pairs for turn in pair], last])
)


class Loaded:
    """As much of a loaded model as encoding needs."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.facts = describe_tokenizer(tokenizer)
        self.image_processor = IdeficsImageProcessorPil(image_size=8)


@pytest.fixture(scope="module")
def loaded(tokenizer):
    return Loaded(tokenizer)


@pytest.fixture(scope="module")
def encode(loaded):
    encoder = PromptEncoder(loaded.facts, "<image>")
    image = (loaded.facts.control_ids["<image>"],)
    return lambda prompt: encoder.encode(prompt, lambda digest: image)


def tiny_image(digest: str) -> Image.Image:
    return Image.new("RGB", (8, 8))


@settings(max_examples=150, deadline=None)
@given(turns=turns, system=st.none() | harmless)
@example(turns=[["http:"]], system=None)
@example(turns=[["  spaces  ", "a" * 64, "   "]], system="  be brief ")
def test_ids_of_a_conversation_are_those_of_the_models_own_processor(
    loaded, encode, conversation, processor_inputs, turns, system
):
    prompt = conversation(turns, system)
    expected = processor_inputs(loaded, prompt, tiny_image)["input_ids"][0].tolist()
    assert list(encode(prompt).ids) == expected


def test_the_shipped_tokenizer_gives_the_processors_ids(shipped, conversation, processor_inputs):
    encoder = PromptEncoder(shipped.facts, "<image>")
    prompt = conversation(
        [["What is in this image?", DIGESTS[0]], "A red circle.", [DIGESTS[1], "And\n now?"]], "Be brief."
    )
    encoded = encoder.encode(prompt, lambda digest: (shipped.facts.control_ids["<image>"],))
    assert list(encoded.ids) == processor_inputs(shipped, prompt, tiny_image)["input_ids"][0].tolist()


def hostile_texts(facts: TokenizerFacts) -> st.SearchStrategy[str]:
    """Control tokens whole, in pieces, nested and run together, among other characters."""
    tokens = [*facts.control, BEFORE, AFTER]
    pieces = st.sampled_from(tokens) | st.sampled_from(tokens).flatmap(
        lambda token: st.tuples(st.integers(0, len(token)), st.integers(0, len(token))).map(
            lambda cut: token[min(cut) : max(cut)]
        )
    )
    return st.lists(pieces | st.text(max_size=3) | st.sampled_from([" ", "\n", "\u2581", "\x00"]), max_size=12).map(
        "".join
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_text_whatever_it_holds_yields_a_control_token(loaded, data):
    text = data.draw(hostile_texts(loaded.facts) | st.text(max_size=30))
    ids = _encoders(loaded).encode(text).ids
    assert not set(ids) & (set(loaded.facts.control_ids.values()) - {loaded.facts.unknown_id})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_hostile_text_reads_back_as_it_was_written(shipped, data):
    text = data.draw(hostile_texts(shipped.facts)).replace("\u2581", " ")
    ids = _encoders(shipped).encode(text).ids
    before = shipped.tokenizer.encode("x", add_special_tokens=False)
    assert shipped.tokenizer.decode([*before, *ids]) == "x" + text


def test_hostile_text_split_over_neighbouring_runs_is_still_text(loaded, encode):
    prompt = Prompt((TextRun("<ima"), TextRun("ge>"), TextRun("<end_of_"), TextRun("utterance>")), (None,) * 4)
    assert not set(encode(prompt).ids) & set(loaded.facts.control_ids.values())


def test_a_vocabulary_that_holds_control_tokens_as_plain_pieces_is_guarded(loaded):
    """A unigram vocabulary matches `</s>` in a text by itself; nothing but the last guard stands in its way."""
    from tokenizers import AddedToken, Tokenizer, models

    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<", -3.0), ("/", -3.0), ("s", -3.0), (">", -3.0), ("a", -2.0)]
    backend = Tokenizer(models.Unigram(pieces, 0, False))
    backend.add_special_tokens([AddedToken("<unk>", normalized=False), AddedToken("</s>", normalized=False)])
    assert 1 in backend.encode("a</s>a").ids
    facts = TokenizerFacts(backend, "", {}, {"</s>": 1}, 0, None, 1, 7)
    assert TextEncoder(facts).encode("a</s>a").ids == (6, 2, 3, 4, 5, 6)


def test_text_that_is_only_a_url_stays_text(shipped, conversation):
    encoder = PromptEncoder(shipped.facts, "<image>")
    prompt = conversation([["https://example.com/cat.png"]])
    encoded = encoder.encode(prompt, lambda digest: (shipped.facts.control_ids["<image>"],))
    assert encoded.images == (None,) * len(encoded)
    assert "https://example.com/cat.png" in shipped.tokenizer.decode(encoded.ids)


def test_each_image_token_knows_its_image(loaded, encode, conversation):
    encoded = encode(conversation([["Look:", DIGESTS[0], DIGESTS[1]], "Two.", [DIGESTS[0], "again"]]))
    image_id = loaded.facts.control_ids["<image>"]
    assert [image for image in encoded.images if image] == [DIGESTS[0], DIGESTS[1], DIGESTS[0]]
    assert [image is not None for image in encoded.images] == [index == image_id for index in encoded.ids]


def test_run_lengths_add_up_and_count_each_run_by_itself(encode, conversation):
    prompt = conversation([["one", DIGESTS[0], "two"], "three", ["four"]], "system")
    encoded = encode(prompt)
    assert len(encoded.run_lengths) == len(prompt.runs)
    assert sum(encoded.run_lengths) == len(encoded)
    lengths = dict(zip(prompt.runs, encoded.run_lengths, strict=True))
    assert all(lengths[run] == 1 for run in prompt.runs if isinstance(run, ControlRun | ImageRun))


def test_neighbouring_texts_are_encoded_as_one_and_counted_apart(encode):
    whole = encode(Prompt((ControlRun(BOS), TextRun("the quick brown")), (None, 0)))
    parts = encode(Prompt((ControlRun(BOS), TextRun("the qu"), TextRun(""), TextRun("ick brown")), (None, 0, 1, 1)))
    assert parts.ids == whole.ids
    assert sum(parts.run_lengths) == len(whole)
    assert parts.run_lengths[2] == 0


def test_ids_of_record_are_used_as_they_are(loaded, encode):
    run = TokenRun((9, 8, 7), loaded.facts.fingerprint, "something else")
    assert encode(Prompt((ControlRun(BOS), run), (None, 0))).ids == (loaded.facts.bos_id, 9, 8, 7)


@pytest.mark.parametrize("tokenizer_name", ["another", None])
def test_ids_of_record_of_another_tokenizer_are_read_as_their_text(loaded, encode, tokenizer_name):
    name = tokenizer_name or loaded.facts.fingerprint
    ids = (9, 8, 7) if tokenizer_name else (loaded.facts.control_ids["<image>"],)
    run = TokenRun(ids, name, " the <image> fox")
    as_text = encode(Prompt((ControlRun(BOS), TextRun(" the <image> fox")), (None, 0)))
    assert encode(Prompt((ControlRun(BOS), run), (None, 0))).ids == as_text.ids


def test_ids_of_record_that_no_vocabulary_has_are_read_as_their_text(loaded, encode):
    run = TokenRun((10**6,), loaded.facts.fingerprint, "fox")
    assert max(encode(Prompt((ControlRun(BOS), run), (None, 0))).ids) < loaded.facts.vocabulary_size


def test_a_control_run_that_the_tokenizer_lacks_is_refused_by_name(encode):
    with pytest.raises(ValueError, match=re.escape("'<nonsense>'")):
        encode(Prompt((ControlRun("<nonsense>"),), (None,)))


def test_lone_surrogates_are_read_as_the_replacement_character(loaded):
    encoder = _encoders(loaded)
    assert encoder.encode("a\ud800b").ids == encoder.encode("a\ufffdb").ids


def test_the_fingerprint_tells_tokenizers_apart_and_forgets_padding(loaded, shipped):
    assert re.fullmatch("[0-9a-f]{64}", loaded.facts.fingerprint)
    assert loaded.facts.fingerprint != shipped.facts.fingerprint
    loaded.facts.backend.enable_padding()
    loaded.facts.backend.enable_truncation(5)
    try:
        assert fingerprint(loaded.facts.backend) == loaded.facts.fingerprint
    finally:
        loaded.facts.backend.no_padding()
        loaded.facts.backend.no_truncation()


def test_a_processor_would_read_a_control_token_out_of_the_same_text(loaded):
    """What the encoder is there for: the tokenizer by itself splits control tokens off a user's text."""
    assert loaded.facts.control_ids["<image>"] in loaded.tokenizer.encode("an <image> here", add_special_tokens=False)
    assert (
        IdeficsProcessor(loaded.image_processor, loaded.tokenizer).image_token_id == loaded.facts.control_ids["<image>"]
    )


_CACHE: dict[str, TextEncoder] = {}


def _encoders(loaded: Any) -> TextEncoder:
    """One encoder a tokenizer: hypothesis asks hundreds of times."""
    return _CACHE.setdefault(loaded.facts.fingerprint, TextEncoder(loaded.facts))
