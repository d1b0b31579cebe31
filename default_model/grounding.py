"""Words and the things they mean: which things of the last image a colour or shape word in a question points at.

Help for stage two. A token that names things learns to hold what they are (colours, shapes, sizes, cells, how many),
and so does the token at which an answer starts, for what was named last. Without it the text part took very long to
find out that the words of a question choose among what it sees. The head is thrown away after training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from idefics_chat.default_model.scenes import COLORS, MAX_THINGS, SHAPES, SIZES, Scene
from idefics_chat.default_model.wording import plural

#: A mention is coded as `color * (shapes + 1) + shape`, each counted from 1, 0 for any; 0 is no mention.
STRIDE = len(SHAPES) + 1
PARTS = (len(COLORS), len(SHAPES), len(SIZES), 9)


def words(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Codes by the id of the token that is such a word."""
    codes = {" grey": STRIDE * (1 + COLORS.index("gray"))}
    for i, color in enumerate(COLORS, 1):
        codes |= {f" {color}": STRIDE * i, f" {color.capitalize()}": STRIDE * i}
    for i, shape in enumerate(SHAPES, 1):
        codes |= {f" {shape}": i, f" {plural(shape)}": i}
    ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in codes}
    return {ids[text][0]: code for text, code in codes.items() if len(ids[text]) == 1}


def mentions(ids: list[int], known: dict[int, int]) -> list[int]:
    """The code of every token of a run of text; a shape word just after a colour word means both."""
    codes = [known.get(i, 0) for i in ids]
    for place in range(len(codes) - 1, 0, -1):
        if 0 < codes[place] < STRIDE <= codes[place - 1]:
            codes[place] += codes[place - 1]
    return codes


@dataclass
class ThingTable:
    """Colours, shapes, sizes and cells of all scenes' things, each `(scenes, MAX_THINGS)`, -1 where there is none."""

    columns: Tensor

    @classmethod
    def of(cls, scenes: list[Scene]) -> ThingTable:
        columns = torch.full((4, len(scenes), MAX_THINGS), -1)
        for row, scene in enumerate(scenes):
            for place, t in enumerate(scene.things):
                values = COLORS.index(t.color), SHAPES.index(t.shape), SIZES.index(t.size), t.row * 3 + t.column
                columns[:, row, place] = torch.tensor(values)
        return cls(columns)

    def meant(self, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """For `(n,)` scenes and codes: the values present in what is meant `(n, sum(PARTS))`, and how many `(n,)`."""
        columns = self.columns[:, rows]
        color, shape = codes // STRIDE - 1, codes % STRIDE - 1
        chosen = columns[0] >= 0
        chosen &= (columns[0] == color[:, None]) | (color[:, None] < 0)
        chosen &= (columns[1] == shape[:, None]) | (shape[:, None] < 0)
        present = [
            (functional.one_hot(column.clamp(min=0), size) * chosen[..., None]).amax(1)
            for column, size in zip(columns, PARTS, strict=True)
        ]
        return torch.cat(present, -1).float(), chosen.sum(1)


class GroundingHead(nn.Module):
    """A linear read-out of a token's state: what is there among what it means, and how many."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.present_head = nn.Linear(width, sum(PARTS))
        self.count_head = nn.Linear(width, MAX_THINGS + 1)

    def loss(self, states: Tensor, present: Tensor, counts: Tensor) -> Tensor:
        """`states` `(n, width)`; mean of the entropies over the tokens."""
        there = functional.binary_cross_entropy_with_logits(self.present_head(states), present.to(states.device))
        return 8 * there + functional.cross_entropy(self.count_head(states), counts.to(states.device))
