"""What the server counts for Prometheus, in a registry of its own: no module state, one registry a server.

Names and units follow Prometheus' practice: base units, `_total` for what only grows. The engine's own counters are
read when somebody asks.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "idefics_chat"

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
RATES = (0.5, 1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 500, 1000)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = self._gauge("websocket_connections", "Websockets that are open.", "route")
        self.http_requests = self._counter(
            "http_requests", "HTTP requests that were answered.", "method", "route", "status"
        )
        self.http_seconds = self._seconds(
            "http_request_seconds", "From an HTTP request to the end of its answer.", "route"
        )
        self.received_bytes = self._counter("received_bytes", "Bytes of bodies and messages that came in.")
        self.errors = self._counter("errors", "Errors that clients were told of.", "code")
        self.turns = self._counter("turns", "Answers that ended.", "end")
        self.turns_running = self._gauge("turns_running", "Answers that wait or are under way.")
        self.tokens = self._counter("tokens", "Tokens of answers that ended.", "kind")
        self.first_token_seconds = self._seconds(
            "time_to_first_token_seconds", "From a turn's start to its first text."
        )
        self.tokens_per_second = Histogram(
            "answer_tokens_per_second",
            "Pace of an answer, from its first text to its last.",
            buckets=RATES,
            namespace=PREFIX,
            registry=self.registry,
        )
        self.database_seconds = self._seconds("database_seconds", "Calls of the store, waiting included.", "kind")

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=LATENCY_S, namespace=PREFIX, registry=self.registry)

    def watch_engine(self, counters: Callable[[], Mapping[str, float]]) -> None:
        """Show the engine's counters too."""
        self.registry.register(EngineCollector(counters))


class EngineCollector(Collector):
    """The engine's counters: those that end in `_now` can fall, the others are sums."""

    def __init__(self, counters: Callable[[], Mapping[str, float]]) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        for name, value in self._counters().items():
            full = f"{PREFIX}_engine_{name.removesuffix('_now')}"
            said = f"The engine's {name.removesuffix('_now').replace('_', ' ')}"
            if name.endswith("_now"):
                yield GaugeMetricFamily(full, f"{said}, now.", value)
            else:
                yield CounterMetricFamily(full, f"{said}, since its start.", value)
