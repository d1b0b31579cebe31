"""Which family of models a loaded one belongs to."""

from collections.abc import Sequence

from idefics_chat.conversation.prompt import Prompt, Run
from idefics_chat.inference.family import Family
from idefics_chat.inference.family_idefics import Idefics
from idefics_chat.inference.family_idefics2 import Idefics2
from idefics_chat.inference.family_idefics3 import Idefics3
from idefics_chat.inference.family_smolvlm import SmolVLM
from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.prompt_encoder import PromptEncoder


def family_of(loaded: LoadedModel) -> Family:
    """The family object that runs a loaded model.

    Raises:
        KeyError: a family that the loader would have refused.
    """
    facts = loaded.facts
    if loaded.family == "idefics":
        return Idefics(loaded.model, loaded.image_processor, facts.control_ids["<image>"])
    encoder = PromptEncoder(facts, "<image>")

    def encode_runs(runs: Sequence[Run]) -> tuple[int, ...]:
        return encoder.encode(Prompt(tuple(runs), (None,) * len(runs)), lambda digest: ()).ids

    if loaded.family == "idefics2":
        return Idefics2(loaded.model, loaded.image_processor, encode_runs)
    kind = {"idefics3": Idefics3, "smolvlm": SmolVLM}[loaded.family]
    return kind(loaded.model, loaded.image_processor, encode_runs, frozenset(facts.control_ids))
