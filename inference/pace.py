"""How much of a prompt to read between two tokens of everyone else.

Streams that are running should not stall while a long prompt joins: the part that is read in one step is chosen so
that it takes little longer than a decode step, from what both took lately.
"""

SHARE = 1.0
"""Time for prompts in one step, in decode steps: a gap between two tokens is then about twice as long as without."""

SMOOTHING = 0.2
"""How much one more measurement moves the estimate."""

LEAST_TOKENS = 16
"""A smaller part would cost more in overhead than it spares the others."""


class Pace:
    """Watches what steps cost. Times are in seconds."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._token_s: float | None = None
        self._decode_s: float | None = None

    def prefill_tokens(self, decoding: int, joining: int = 1) -> int:
        """Tokens of prompts to read in this step, while `decoding` requests wait for their next token.

        Where more are `joining` than are decoding, they get more of the time: a batch that fills soon is best for all.
        """
        if not decoding:
            return self._most_tokens
        if self._token_s is None or self._decode_s is None:
            return min(self._most_tokens, 4 * LEAST_TOKENS)
        share = SHARE * max(1.0, joining / decoding)
        fitting = int(share * self._decode_s / max(self._token_s, 1e-9))
        return max(min(LEAST_TOKENS, self._most_tokens), min(self._most_tokens, fitting))

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Say what reading so many tokens took."""
        if tokens > 0:
            self._token_s = _moved(self._token_s, seconds / tokens)

    def decoded(self, seconds: float) -> None:
        """Say what a decode step took."""
        self._decode_s = _moved(self._decode_s, seconds)


def _moved(estimate: float | None, measured: float) -> float:
    return measured if estimate is None else estimate + SMOOTHING * (measured - estimate)
