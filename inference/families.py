"""Which family of models a loaded one belongs to."""

from idefics_chat.inference.family import Family
from idefics_chat.inference.family_idefics import Idefics
from idefics_chat.inference.loader import LoadedModel


def family_of(loaded: LoadedModel) -> Family:
    """The family object that runs a loaded model."""
    image_id = loaded.facts.control_ids["<image>"]
    return Idefics(loaded.model, loaded.image_processor, image_id)
