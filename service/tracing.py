"""Tracing: optional OpenTelemetry spans of requests, their stages and the batches that held their pairs.

Off, no package is loaded and every call returns at once. On, the standard OTEL_ variables configure it; a collector
that is slow or down costs spans, never an answer. Attributes hold names and sizes, never a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Thread
from time import perf_counter, perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Protocol

from relevance import __version__
from relevance.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

SERVICE_NAME = "relevance-tiers"


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A request's span, handed from thread to thread.

    Args: trace_id: 32 hexadecimal digits, for logs; sampled: whether anything is recorded; span, context: the SDK's;
        epoch_ns: wall clock minus `perf_counter` when the request came, so that a clock step bends no open request.
    """

    trace_id: str
    sampled: bool
    span: Span
    context: Context
    epoch_ns: int

    def at(self, seconds: float) -> int:
        """Give a `perf_counter` time as nanoseconds since the epoch."""
        return int(seconds * 1e9) + self.epoch_ns


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What a batch was: its rows, their tokens, the tokens computed on with padding, the graph's precision."""

    rows: int
    tokens: int
    padded_tokens: int
    precision: str


class Tracing(Protocol):
    """What the service tells about a request; all times are `perf_counter` seconds, every call is thread-safe."""

    def start_request(
        self, headers: Iterable[tuple[bytes, bytes]], *, request_id: str, start_s: float
    ) -> RequestSpan | None:
        """Open a request's span below the caller's, if the raw ASGI headers name one; None when tracing is off."""

    def stage(self, request: RequestSpan | None, *, name: str, start_s: float, end_s: float) -> None:
        """Record a finished stage of a request."""

    def batch(self, requests: Iterable[RequestSpan | None], *, facts: BatchFacts, start_s: float, end_s: float) -> None:
        """Record a finished batch, linked to each sampled request that had rows in it, in the trace of the first."""

    def end_request(self, request: RequestSpan | None, *, method: str, route: str, status: int) -> None:
        """Close a request's span; a 5xx marks it as an error."""

    def close(self, *, timeout_s: float) -> None:
        """Send what is recorded, for at most so long; what is left then is lost."""


class NoTracing:
    """Tracing turned off."""

    def start_request(
        self, headers: Iterable[tuple[bytes, bytes]], *, request_id: str, start_s: float
    ) -> RequestSpan | None:
        """Give nothing to pass on."""
        return None

    def stage(self, request: RequestSpan | None, *, name: str, start_s: float, end_s: float) -> None:
        """Do nothing."""

    def batch(self, requests: Iterable[RequestSpan | None], *, facts: BatchFacts, start_s: float, end_s: float) -> None:
        """Do nothing."""

    def end_request(self, request: RequestSpan | None, *, method: str, route: str, status: int) -> None:
        """Do nothing."""

    def close(self, *, timeout_s: float) -> None:
        """Do nothing."""


class OpenTelemetryTracing:
    """Spans by the OpenTelemetry SDK, of a provider of its own: what else the process traces is left alone.

    Args: processor: where finished spans go. Raises: ModuleNotFoundError: without the SDK; ValueError: a wrong OTEL_
        variable.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import propagate, trace
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        ours = Resource({"service.name": SERVICE_NAME, "service.version": __version__})
        resource = Resource.create(ours.merge(OTELResourceDetector().detect()).attributes)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE_NAME, __version__)
        self._trace = trace
        self._propagator = propagate.get_global_textmap()

    def start_request(
        self, headers: Iterable[tuple[bytes, bytes]], *, request_id: str, start_s: float
    ) -> RequestSpan | None:
        """Open a request's span; None when the SDK is disabled by its own variable."""
        epoch_ns = time_ns() - perf_counter_ns()
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        span = self._tracer.start_span(
            "request",
            self._propagator.extract(carrier),
            self._trace.SpanKind.SERVER,
            attributes={"relevance.request_id": request_id},
            start_time=int(start_s * 1e9) + epoch_ns,
        )
        identity = span.get_span_context()
        if not identity.is_valid:
            return None
        return RequestSpan(
            trace_id=self._trace.format_trace_id(identity.trace_id),
            sampled=span.is_recording(),
            span=span,
            context=self._trace.set_span_in_context(span),
            epoch_ns=epoch_ns,
        )

    def stage(self, request: RequestSpan | None, *, name: str, start_s: float, end_s: float) -> None:
        """Record a finished stage below its request, which may have ended already."""
        if request is not None and request.sampled:
            span = self._tracer.start_span(name, request.context, start_time=request.at(start_s))
            span.end(request.at(end_s))

    def batch(self, requests: Iterable[RequestSpan | None], *, facts: BatchFacts, start_s: float, end_s: float) -> None:
        """Record a finished batch below its first sampled request: whoever sampled the request sampled its batches."""
        sampled = [request for request in requests if request is not None and request.sampled]
        if not sampled:
            return
        first = sampled[0]
        span = self._tracer.start_span(
            "batch",
            first.context,
            attributes={
                "relevance.batch.rows": facts.rows,
                "relevance.batch.tokens": facts.tokens,
                "relevance.batch.padded_tokens": facts.padded_tokens,
                "relevance.batch.padding_ratio": 1 - facts.tokens / max(facts.padded_tokens, 1),
                "relevance.precision": facts.precision,
            },
            links=[self._trace.Link(request.span.get_span_context()) for request in sampled],
            start_time=first.at(start_s),
        )
        span.end(first.at(end_s))

    def end_request(self, request: RequestSpan | None, *, method: str, route: str, status: int) -> None:
        """Name the span after its route and close it now."""
        if request is None or not request.sampled:
            return
        span = request.span
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {"http.request.method": method, "http.route": route, "http.response.status_code": status},
        )
        if status >= 500:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(request.at(perf_counter()))

    def close(self, *, timeout_s: float) -> None:
        """Flush on a thread of its own, because the SDK's flush waits for a collector without a limit of ours."""
        flush = Thread(target=self._provider.shutdown, name="tracing-flush", daemon=True)
        flush.start()
        flush.join(timeout_s)


def open_tracing(*, enabled: bool) -> Tracing:
    """Give the tracing that the settings ask for; spans go out by OTLP over HTTP from a thread of the SDK.

    Raises: SettingsError: enabled without the `tracing` extra, or with an OTEL_ variable that the SDK refuses.
    """
    if not enabled:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        return OpenTelemetryTracing(BatchSpanProcessor(OTLPSpanExporter()))
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"tracing: expected the package of {error.name!r}, found none; pip install 'relevance-tiers[tracing]'"
        ) from error
    except ValueError as error:
        raise SettingsError(f"tracing: expected OTEL_ variables that the SDK takes: {error}") from error
