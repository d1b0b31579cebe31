"""SmolVLM2: in images just like Idefics3. Its processor also takes videos, which are not served here.

Source: `SmolVLMProcessor` of transformers.
"""

from idefics_chat.inference.family_idefics3 import Idefics3


class SmolVLM(Idefics3):
    """The family `smolvlm`."""
