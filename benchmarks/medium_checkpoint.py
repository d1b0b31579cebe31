"""A medium Idefics3-like checkpoint in a folder, whole enough for any server: weights, tokenizer, template, processor.

The weights are random: speed does not depend on them. The tokenizer is trained on made-up words, so that what the model
says comes back as about as many tokens when a client sends it again.
"""

import random
from pathlib import Path
from typing import Any

from engine_cases import medium_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

CONTROL = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"]
SYLLABLES = [first + last for first in "bdfgklmnprstvz" for last in ("a", "e", "i", "o", "u", "an", "el", "ir", "os")]
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{% if loop.first %} {% endif %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def save_checkpoint(folder: Path) -> Path:
    """Make the checkpoint; the folder."""
    backend = _tokenizer()
    model: Any = medium_model(vocabulary=backend.get_vocab_size(), image_id=backend.token_to_id("<image>"))
    model.generation_config.eos_token_id = backend.token_to_id("<end_of_utterance>")
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_start|>",
        extra_special_tokens=CONTROL,
        chat_template=TEMPLATE,
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 256}, max_image_size={"longest_edge": 256}, do_image_splitting=False
    )
    Idefics3Processor(images, tokenizer, image_seq_len=64, chat_template=TEMPLATE).save_pretrained(folder)
    return folder


def sentence(words: int, seed: int) -> str:
    """Made-up words."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(words))


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8192 - len(CONTROL), show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator((sentence(2000, seed) for seed in range(30)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CONTROL])
    return tokenizer
