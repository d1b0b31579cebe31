"""Makes the tokenizer: byte-pair pieces over words, single digits, bytes for all else. Every string comes back whole.

No normalisation and no dummy prefix: a piece carries its own leading space, so encoding the runs between control tokens
one by one gives the ids of the whole. Needs `tokenizers`, which comes with transformers; only this module does.
"""

from __future__ import annotations

import inspect
import json
import random
import re
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, IdeficsProcessor, PreTrainedTokenizerFast

from idefics_chat.default_model.architecture import CONTEXT, CONTROL_TOKENS, IMAGE_SIZE, VOCABULARY
from idefics_chat.default_model.base_tasks import sample_base_task
from idefics_chat.default_model.dialogues import sample_dialogue
from idefics_chat.default_model.memory import NAMES
from idefics_chat.default_model.scenes import sample_scene
from idefics_chat.default_model.small_talk import WORDS

FIRST = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
#: Who speaks; a word, a digit or a run of signs, each with at most one space before it; or one white space.
WORD = r"\n?(?:User|Assistant):| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def corpus(seed: int, documents: int) -> list[str]:
    """The domain's own text, and English from transformers' docstrings, so that other words need few pieces."""
    rng = random.Random(seed)
    lines = []
    for _ in range(documents):
        make = sample_dialogue if rng.random() < 0.7 else sample_base_task
        document = make(rng, lambda: sample_scene(rng))
        lines += [text for text, _ in document.segments() if not text.startswith("<")]
    lines += [f" {word}" for word in (*NAMES, *WORDS) for _ in range(60)]
    for module in (transformers.PreTrainedModel, transformers.GenerationMixin, transformers.PreTrainedTokenizerBase):
        for _, member in inspect.getmembers(module, inspect.isfunction):
            lines += re.findall(r"[A-Za-z ,.']{20,}", inspect.getdoc(member) or "")
    return lines


def train_pieces(lines: list[str]) -> models.BPE:
    """A byte-fallback BPE of exactly `VOCABULARY` pieces with ids 0.. for `<unk>`, `<s>`, `</s>` and the bytes."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(FIRST), initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False
    )
    learner.train_from_iterator(lines, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = FIRST + sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    merges = [(left, right) for left, right in learnt["merges"]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)


def make_tokenizer(seed: int = 1, documents: int = 6000) -> PreTrainedTokenizerFast:
    """The tokenizer with its control tokens; ids `VOCABULARY`.. are those of `CONTROL_TOKENS`."""
    core = Tokenizer(train_pieces(corpus(seed, documents)))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    control = [AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS]
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    return tokenizer


def save_processor(folder: Path) -> None:
    """Writes tokenizer and image processor to `folder`, loadable with `AutoProcessor`."""
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    seen = IdeficsImageProcessorPil(image_size=IMAGE_SIZE)
    processor = IdeficsProcessor(seen, make_tokenizer())  # type: ignore[no-untyped-call]
    processor.save_pretrained(folder)
