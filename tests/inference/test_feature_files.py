"""Image features on disk: what is read is what was stored, or nothing; the budget holds; a restart encodes nothing."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.inference.engine import EngineLimits, create_engine
from idefics_chat.inference.errors import ModelLoadError
from idefics_chat.inference.feature_files import FeatureFiles, StoredFeatures
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.model_fingerprint import features_fingerprint
from idefics_chat.inference.requests import GenerationRequest

pytestmark = pytest.mark.anyio

PLENTY = 10**9
A, B = "a" * 64, "b" * 64


def features(seed: int = 0, rows: int = 4) -> StoredFeatures:
    generator = torch.Generator().manual_seed(seed)
    return StoredFeatures((3, 5, 3), tuple(torch.randn(rows, 8, generator=generator) for _ in range(2)))


def same(one: StoredFeatures | None, other: StoredFeatures) -> bool:
    if one is None or one.token_ids != other.token_ids:
        return False
    pairs = zip(one.tensors, other.tensors, strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def files(tmp_path: Path) -> FeatureFiles:
    return FeatureFiles(tmp_path / "features", PLENTY, "model")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_stored_is_read_again_after_a_restart(files: FeatureFiles, tmp_path: Path, dtype: torch.dtype) -> None:
    stored = StoredFeatures((1, 2), tuple(tensor.to(dtype).t() for tensor in features().tensors))
    files.put(A, stored)
    assert same(files.get(A), stored)
    assert same(FeatureFiles(tmp_path / "features", PLENTY, "model").get(A), stored)
    assert files.get(B) is None


def test_another_model_finds_nothing(files: FeatureFiles, tmp_path: Path) -> None:
    files.put(A, features())
    assert FeatureFiles(tmp_path / "features", PLENTY, "another model").get(A) is None


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10**9), bit=st.integers(0, 7), cut=st.booleans())
def test_a_file_that_was_damaged_anywhere_is_not_believed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("features")
    files = FeatureFiles(folder, PLENTY, "model")
    files.put(A, features())
    path = next(folder.iterdir())
    data = bytearray(path.read_bytes())
    place %= len(data)
    if cut:
        del data[place:]
    else:
        data[place] ^= 1 << bit
    path.write_bytes(data)
    # The folder is read anew, so that the length is taken as it is.
    files = FeatureFiles(folder, PLENTY, "model")
    assert files.get(A) is None
    assert (list(folder.iterdir()), files.used_bytes) == ([], 0)
    files.put(A, features())
    assert same(files.get(A), features())


def test_a_file_of_another_image_or_model_under_the_right_name_is_not_believed(
    files: FeatureFiles, tmp_path: Path
) -> None:
    files.put(A, features())
    path = next((tmp_path / "features").iterdir())
    for fingerprint, digest in (("model", B), ("another model", A)):
        other = FeatureFiles(tmp_path / digest[0] / fingerprint, PLENTY, fingerprint)
        other.put(digest, features(1))
        foreign = next((tmp_path / digest[0] / fingerprint).iterdir())
        path.write_bytes(foreign.read_bytes())
        assert FeatureFiles(tmp_path / "features", PLENTY, "model").get(A) is None


class _Trap:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self._mark,))


def test_a_pickle_is_not_loaded(files: FeatureFiles, tmp_path: Path) -> None:
    files.put(A, features())
    path, mark = next((tmp_path / "features").iterdir()), tmp_path / "mark"
    path.write_bytes(pickle.dumps(_Trap(mark)))
    assert FeatureFiles(tmp_path / "features", PLENTY, "model").get(A) is None
    torch.save({"x": _Trap(mark)}, path)
    assert FeatureFiles(tmp_path / "features", PLENTY, "model").get(A) is None
    assert not mark.exists()


@settings(max_examples=60, deadline=None)
@given(
    budget=st.integers(0, 3000),
    moves=st.lists(st.tuples(st.sampled_from(["put", "get", "restart"]), st.integers(0, 5)), max_size=25),
)
def test_the_budget_holds_and_what_was_used_longest_ago_goes_first(
    tmp_path_factory: pytest.TempPathFactory, budget: int, moves: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("features")
    files = FeatureFiles(folder, budget, "model")
    kept: list[int] = []  # oldest first
    for move, which in moves:
        if move == "restart":
            files = FeatureFiles(folder, budget, "model")
        elif move == "put":
            files.put(str(which), features(which))
        if move == "put" or (move == "get" and files.get(str(which)) is not None):
            kept = [*(image for image in kept if image != which), which]
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert sum(sizes.values()) == files.used_bytes <= budget
        kept = kept[len(kept) - len(sizes) :]
        assert set(sizes) == {files._name(str(image)) for image in kept}
        for age, image in enumerate(kept):  # a clock finer than the file system's
            os.utime(folder / files._name(str(image)), (age, age))


def test_what_a_crash_left_unfinished_is_removed_and_other_files_are_left_alone(tmp_path: Path) -> None:
    unfinished = tmp_path / f"{'0' * 64}.safetensors.{'1' * 32}.tmp"
    own = tmp_path / "notes.txt"
    for path in (unfinished, own):
        path.write_text("x")
    FeatureFiles(tmp_path, 0, "model")
    assert (unfinished.exists(), own.exists()) == (False, True)


def test_a_disk_that_fails_is_an_empty_folder(files: FeatureFiles, tmp_path: Path, caplog: Any) -> None:
    files.put(A, features())
    (tmp_path / "features").rename(tmp_path / "gone")
    assert files.get(A) is None
    files.put(B, features())
    assert files.get(B) is None
    assert files.used_bytes == 0
    assert "cannot be stored" in caplog.text


def test_a_fingerprint_tells_models_apart_and_knows_one_again(random_checkpoint: Path, plain_model: Any) -> None:
    one, again = (load_model(str(random_checkpoint), dtype="float32", device="cpu") for _ in range(2))
    known = features_fingerprint(one)
    assert features_fingerprint(again) == known
    assert features_fingerprint(load_model(str(random_checkpoint), dtype="bfloat16", device="cpu")) != known
    assert features_fingerprint(plain_model) != known
    again.image_processor.image_mean = [0.1, 0.1, 0.1]
    assert features_fingerprint(again) != known
    with torch.no_grad():
        one.model.model.vision_model.post_layernorm.weight.mul_(1.01)
    assert features_fingerprint(one) != known


@pytest.fixture(params=["random_model", "idefics3"])
def loaded(request: pytest.FixtureRequest, make_in_sequence: Any, tmp_path: Path) -> Any:
    """Of one family images are one token, of the other their number of tokens depends on the image."""
    if request.param == "random_model":
        return request.getfixturevalue("random_model")
    return load_model(str(make_in_sequence(tmp_path / "idefics3", "idefics3")), dtype="float32", device="cpu")


async def test_a_restart_encodes_no_image_again_and_changes_no_answer(
    loaded: Any, answer: Any, album: Any, talk_prompt: Any, tmp_path: Path
) -> None:
    limits = EngineLimits(feature_folder=tmp_path / "features")
    prompt = talk_prompt(loaded, [["What is this?", album.add("red"), album.add("blue", "rectangle")]])
    request = GenerationRequest(prompt, album.load, max_output_tokens=8)
    before = create_engine(loaded, limits=limits)
    _, first = await answer(before, request)
    await before.aclose()
    counted = before.counters()
    assert (counted["images_encoded"], counted["features_stored"], counted["features_read"]) == (2, 2, 0)
    assert 0 < counted["feature_disk_bytes_now"] <= limits.feature_disk_bytes
    album.loaded.clear()
    after = create_engine(loaded, limits=limits)
    _, second = await answer(after, request)
    await after.aclose()
    counted = after.counters()
    assert (counted["images_encoded"], counted["features_read"]) == (0, 2)
    assert album.loaded == []
    assert second.token_ids == first.token_ids


async def test_damaged_files_are_encoded_again_and_change_no_answer(
    loaded: Any, answer: Any, album: Any, talk_prompt: Any, tmp_path: Path
) -> None:
    limits = EngineLimits(feature_folder=tmp_path / "features")
    request = GenerationRequest(talk_prompt(loaded, [["Hm?", album.add("red")]]), album.load, max_output_tokens=8)
    before = create_engine(loaded, limits=limits)
    _, first = await answer(before, request)
    await before.aclose()
    path = next((tmp_path / "features").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    after = create_engine(loaded, limits=limits)
    _, second = await answer(after, request)
    await after.aclose()
    assert after.counters()["images_encoded"] == 1
    assert second.token_ids == first.token_ids


def test_a_folder_that_cannot_be_used_is_a_clear_error(random_model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelLoadError, match="Image features cannot be kept") as caught:
        create_engine(random_model, limits=EngineLimits(feature_folder=tmp_path / "file"))
    assert caught.value.code == "model_not_loaded"
