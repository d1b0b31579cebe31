"""What a training that goes on makes sure of."""

from argparse import Namespace
from pathlib import Path

import pytest

from idefics_chat.default_model.train import keep_settings


def test_a_training_goes_on_only_with_the_scenes_that_it_began_with(tmp_path: Path) -> None:
    begun = {"output": tmp_path, "seed": 1, "scenes": 400, "hold_out": False}
    keep_settings(Namespace(**begun))
    keep_settings(Namespace(**begun, text_minutes=3.0))
    for other in ({"seed": 2}, {"scenes": 500}, {"hold_out": True}):
        with pytest.raises(SystemExit, match="give the same"):
            keep_settings(Namespace(**begun | other))
