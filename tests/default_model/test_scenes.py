"""Scenes: the same for the same seed, unambiguous, and drawn where they say."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from idefics_chat.default_model.scenes import (
    APART,
    BORDER,
    COLORS,
    HELD_OUT,
    SAME,
    SHAPES,
    Scene,
    render,
    sample_scene,
)

SEEDS = st.integers(0, 2**40)


def scene_of(seed: int) -> Scene:
    return sample_scene(random.Random(seed))


@given(SEEDS)
def test_a_seed_gives_one_scene(seed: int) -> None:
    assert scene_of(seed) == scene_of(seed)


def test_a_seed_gives_one_picture() -> None:
    scene = scene_of(5)
    pictures = [np.asarray(render(scene, random.Random(9))) for _ in range(2)]
    assert (pictures[0] == pictures[1]).all()


@given(SEEDS)
def test_no_two_things_share_a_cell_and_reading_order_is_by_row_then_column(seed: int) -> None:
    cells = [(t.row, t.column) for t in scene_of(seed).things]
    assert cells == sorted(set(cells))


@given(SEEDS)
def test_things_lie_inside_the_picture_and_off_the_borders_between_cells(seed: int) -> None:
    for thing in scene_of(seed).things:
        for value in (thing.x, thing.y):
            assert thing.radius < value < 1 - thing.radius
            assert min(abs(value - 1 / 3), abs(value - 2 / 3)) > BORDER


@given(SEEDS)
def test_beside_and_above_are_never_a_matter_of_taste(seed: int) -> None:
    things = scene_of(seed).things
    for one in things:
        for other in things:
            assert abs(one.x - other.x) <= SAME if one.column == other.column else abs(one.x - other.x) >= APART
            assert abs(one.y - other.y) <= SAME if one.row == other.row else abs(one.y - other.y) >= APART


@given(SEEDS)
def test_nothing_has_the_color_of_the_background(seed: int) -> None:
    scene = scene_of(seed)
    assert scene.background not in {t.color for t in scene.things}


@given(SEEDS)
def test_excluded_pairs_are_never_drawn(seed: int) -> None:
    scene = sample_scene(random.Random(seed), HELD_OUT)
    assert not HELD_OUT & {(t.color, t.shape) for t in scene.things}


def test_the_held_out_pairs_take_every_color_and_every_shape() -> None:
    assert {color for color, _ in HELD_OUT} == set(COLORS)
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.integers(64, 400), st.integers(64, 400))
def test_pictures_have_the_size_asked_for(seed: int, width: int, height: int) -> None:
    picture = render(scene_of(seed), random.Random(seed), (width, height))
    assert (picture.size, picture.mode) == ((width, height), "RGB")
