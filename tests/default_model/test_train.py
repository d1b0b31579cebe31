"""What a training that goes on makes sure of."""

from argparse import Namespace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from idefics_chat.default_model import checkpoint_path
from idefics_chat.default_model.train import keep_processor, keep_settings


def test_a_training_goes_on_only_with_the_scenes_that_it_began_with(tmp_path: Path) -> None:
    begun = {"output": tmp_path, "seed": 1, "scenes": 400, "hold_out": False}
    keep_settings(Namespace(**begun))
    keep_settings(Namespace(**begun, text_minutes=3.0))
    for other in ({"seed": 2}, {"scenes": 500}, {"hold_out": True}):
        with pytest.raises(SystemExit, match="give the same"):
            keep_settings(Namespace(**begun | other))


def test_a_training_goes_on_only_with_the_tokenizer_that_it_began_with(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="lacks the tokenizer"):
        keep_processor(tmp_path / "lost", None, taught=True)
    assert not (tmp_path / "lost").exists()
    folder = tmp_path / "begun"
    keep_processor(folder, checkpoint_path(), taught=False)
    begun = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert begun == AutoTokenizer.from_pretrained(checkpoint_path()).get_vocab()
    keep_processor(folder, None, taught=True)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == begun
