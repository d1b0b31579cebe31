"""How much of a prompt to read between two tokens of everyone else.

Streams that are running should not stall while a long prompt joins: the part that is read in one step is chosen so
that it takes little longer than a decode step, from what both took lately.
"""

SHARE = 1.0
"""Time for prompts in one step, in decode steps, while one request joins: a gap between two tokens is then about twice
as long as without."""

MOST_SHARE = 4.0
"""The same where several join: read together they are read sooner than one by one, which spares the others more gaps
than it makes longer. Beyond it only if more are joining than so many times those that are decoding."""

SMOOTHING = 0.2
"""How much one more measurement moves the estimate of a decode step."""

FORGETTING = 0.1
"""How much one more measurement makes earlier ones of reading weigh less."""

LEAST_SLOPE = 0.2
"""A token costs at least this part of the mean, so that one measurement that was disturbed cannot make it seem free."""

LEAST_TOKENS = 8
"""A smaller part would cost more in overhead than it spares the others."""


class Pace:
    """Watches what steps cost. Times are in seconds.

    Reading costs something however little is read, and then something for each token: both are estimated, by least
    squares over the latest measurements. To take the mean cost of a token would end in ever smaller parts, since small
    parts make it large.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._decode_s: float | None = None
        # Sums over what was read, older ones weighing less: 1, tokens, tokens squared, seconds, tokens times seconds.
        self._sums = [0.0] * 5

    def prefill_tokens(self, decoding: int, joining: int = 1) -> int:
        """Tokens of prompts to read in this step, while `decoding` requests wait for their next token.

        The more are `joining`, the more of the time they get: a batch that fills soon is best for all.
        """
        if not decoding:
            return self._most_tokens
        if not self._sums[0] or self._decode_s is None:
            return min(self._most_tokens, 8 * LEAST_TOKENS)
        share = SHARE * max(1.0, min(joining, MOST_SHARE), joining / decoding)
        start_s, token_s = self._reading_costs(decoding, self._decode_s)
        fitting = int((share * self._decode_s - start_s) / max(token_s, 1e-9))
        return max(min(LEAST_TOKENS, self._most_tokens), min(self._most_tokens, fitting))

    def prefilled(self, tokens: int, seconds: float) -> None:
        """Say what reading so many tokens took."""
        if tokens > 0:
            fresh = (1.0, tokens, tokens * tokens, seconds, tokens * seconds)
            self._sums = [(1 - FORGETTING) * old + new for old, new in zip(self._sums, fresh, strict=True)]

    def decoded(self, seconds: float) -> None:
        """Say what a decode step took."""
        before = seconds if self._decode_s is None else self._decode_s
        self._decode_s = before + SMOOTHING * (seconds - before)

    def _reading_costs(self, decoding: int, decode_s: float) -> tuple[float, float]:
        """Seconds that reading takes to start, and those for each token. A decode step counts as one more measurement,
        of reading a token of each request: where only long parts were read, it tells what a short one costs."""
        step = (1.0, decoding, decoding * decoding, decode_s, decoding * decode_s)
        weight, tokens, squares, seconds, products = (a + b for a, b in zip(self._sums, step, strict=True))
        spread = weight * squares - tokens * tokens
        mean = seconds / tokens
        slope = (weight * products - tokens * seconds) / spread if spread > 1e-6 * tokens * tokens else mean
        slope = min(mean, max(LEAST_SLOPE * mean, slope))
        return max(0.0, (seconds - slope * tokens) / weight), slope
