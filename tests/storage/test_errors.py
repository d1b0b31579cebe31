"""Errors: a stable code each, and a sentence that says what to do."""

import re

import pytest

from idefics_chat.storage import errors

SAMPLES = {"expected": 3, "actual": 5, "limit": 7}
SHARED = {"storage_error", "invalid_value", "file_not_found"}


def made(kind: type[errors.StorageError]) -> errors.StorageError:
    """An error of the kind, with its own arguments."""
    own = any("__init__" in vars(base) for base in kind.__mro__[: kind.__mro__.index(errors.StorageError)])
    names = kind.__init__.__code__.co_varnames[1 : kind.__init__.__code__.co_argcount] if own else ()
    return kind(*(SAMPLES.get(name, f"some {name}") for name in names))


def kinds() -> list[type[errors.StorageError]]:
    """All that are raised."""
    direct = [kind for kind in errors.StorageError.__subclasses__() if kind is not errors.NotFound]
    return [*direct, *errors.NotFound.__subclasses__()]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_code_and_data_in_its_sentence(kind):
    error = made(kind)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    if kind is not errors.DatabaseUnavailable:  # its reason is the whole sentence
        assert str(error).endswith(".")
    assert all(str(argument) in str(error) for argument in error.args[-1:])


def test_codes_are_each_ones_own_and_all_errors_are_in_the_tree_that_is_drawn():
    codes = [kind.code for kind in kinds() if kind.code not in SHARED]
    assert len(codes) == len(set(codes))
    assert all(f"── {kind.__name__}" in (errors.__doc__ or "") for kind in kinds())
