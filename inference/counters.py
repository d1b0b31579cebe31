"""What the engine counts, for metrics. Written by the engine's thread, read by any: numbers, no locks."""

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Sums since the start, unless a field says "now". Times are in seconds."""

    waiting_now: int = 0
    running_now: int = 0
    requests_finished: int = 0
    requests_failed: int = 0
    tokens_prefilled: int = 0
    tokens_reused: int = 0
    tokens_generated: int = 0
    images_encoded: int = 0
    encodes_saved: int = 0
    features_read: int = 0
    features_stored: int = 0
    feature_disk_bytes_now: int = 0
    slot_bytes_now: int = 0
    parked_device_bytes_now: int = 0
    parked_host_bytes_now: int = 0
    feature_bytes_now: int = 0
    memory_refusals: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_tokens: int = 0
    first_token_seconds: float = 0.0

    def snapshot(self) -> dict[str, float]:
        """All numbers by name."""
        return asdict(self)
