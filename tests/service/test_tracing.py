"""Spans of requests, stages and batches; what a collector sees; what happens without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from time import perf_counter, time_ns

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from relevance.errors import SettingsError
from service.tracing import BatchFacts, NoTracing, OpenTelemetryTracing, open_tracing

CALLER = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = [(b"host", b"shop"), (b"traceparent", f"00-{CALLER}-00f067aa0ba902b7-01".encode())]
NOT_SAMPLED = [(b"traceparent", f"00-{CALLER}-00f067aa0ba902b7-00".encode())]
FACTS = BatchFacts(rows=12, tokens=300, padded_tokens=400, precision="int8w")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Take no OTEL_ variable from the machine."""
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Finished spans, in order."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter) -> Iterator[OpenTelemetryTracing]:
    """Tracing into memory."""
    made = OpenTelemetryTracing(SimpleSpanProcessor(exporter))
    yield made
    made.close(timeout_s=10)


class Collector:
    """An OTLP receiver on a free port; with a gate, it answers only once that is open."""

    def __init__(self, gate: Event | None = None) -> None:
        self.paths: list[str] = []
        self.spans: list[str] = []
        self.asked = Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.set()
                if gate is not None:
                    gate.wait(30)
                outer.paths.append(self.path)
                outer.spans += [s.name for r in sent.resource_spans for scope in r.scope_spans for s in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Stay silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        """Where to send to."""
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        """Close the port."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def ask(tracing, headers=SAMPLED, request_id="r-1"):
    """Open a request's span now."""
    return tracing.start_request(headers, request_id=request_id, start_s=perf_counter())


def by_name(exporter):
    """Give the finished spans by name."""
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_continues_the_trace_of_its_caller(tracing, exporter):
    """The span's trace and parent are those of `traceparent`; the name and the attributes come from the route."""
    request = ask(tracing)
    tracing.end_request(request, method="POST", route="/score", status=200)
    (span,) = exporter.get_finished_spans()

    assert request.trace_id == CALLER
    assert span.name == "POST /score"
    assert (span.context.trace_id, span.parent.span_id) == (int(CALLER, 16), 0x00F067AA0BA902B7)
    assert dict(span.attributes) == {
        "relevance.request_id": "r-1",
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize("value", [b"", b"00-zz-00f067aa0ba902b7-01", b"\xff\xfe", b"00-" + b"0" * 32 + b"-1-01"])
def test_a_damaged_traceparent_starts_a_new_trace(tracing, exporter, value):
    """What a caller sends cannot break a request."""
    tracing.end_request(ask(tracing, [(b"traceparent", value)]), method="POST", route="/score", status=200)

    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_stages_lie_below_their_request_at_their_own_times(tracing, exporter):
    """A stage that took 5 ms is 5 ms long and ended now; one may come after its request has ended."""
    request = ask(tracing)
    now = perf_counter()
    tracing.stage(request, name="queue", start_s=now - 0.005, end_s=now)
    tracing.end_request(request, method="POST", route="/score", status=200)
    tracing.stage(request, name="infer", start_s=now - 0.003, end_s=now)
    spans = by_name(exporter)

    assert {spans[name].parent.span_id for name in ("queue", "infer")} == {spans["POST /score"].context.span_id}
    assert spans["queue"].end_time - spans["queue"].start_time == pytest.approx(5e6, abs=1e3)
    assert abs(spans["queue"].end_time - time_ns()) < 60e9


def test_a_batch_links_to_every_request_that_has_rows_in_it(tracing, exporter):
    """It stands in the trace of the first; padding of 300 in 400 tokens is a quarter."""
    first, second = ask(tracing), ask(tracing, [], "r-2")
    now = perf_counter()
    tracing.batch([None, first, second], facts=FACTS, start_s=now - 0.01, end_s=now)
    span = by_name(exporter)["batch"]

    assert [f"{link.context.trace_id:032x}" for link in span.links] == [CALLER, second.trace_id]
    assert f"{span.context.trace_id:032x}" == CALLER
    assert dict(span.attributes) == {
        "relevance.batch.rows": 12,
        "relevance.batch.tokens": 300,
        "relevance.batch.padded_tokens": 400,
        "relevance.batch.padding_ratio": 0.25,
        "relevance.precision": "int8w",
    }


def test_what_the_caller_did_not_sample_leaves_no_span(tracing, exporter):
    """The log line has its trace id all the same; a batch of such requests alone is not recorded."""
    request = ask(tracing, NOT_SAMPLED)
    tracing.stage(request, name="queue", start_s=0.0, end_s=1.0)
    tracing.batch([request], facts=FACTS, start_s=0.0, end_s=1.0)
    tracing.end_request(request, method="POST", route="/score", status=200)

    assert request.trace_id == CALLER
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("status", "code"), [(200, StatusCode.UNSET), (429, StatusCode.UNSET), (503, StatusCode.ERROR)]
)
def test_only_our_own_failures_are_errors(tracing, exporter, status, code):
    """A 4xx is the caller's."""
    tracing.end_request(ask(tracing), method="POST", route="/score", status=status)

    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is code


def test_the_service_is_named_unless_a_variable_names_it(monkeypatch, exporter):
    """OTEL_SERVICE_NAME wins over our name; the version stays."""
    ours = OpenTelemetryTracing(SimpleSpanProcessor(exporter))
    ask(ours).span.end()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ads-relevance")
    theirs = OpenTelemetryTracing(SimpleSpanProcessor(exporter))
    ask(theirs).span.end()
    resources = [span.resource.attributes for span in exporter.get_finished_spans()]

    assert [found["service.name"] for found in resources] == ["relevance-tiers", "ads-relevance"]
    assert "service.version" in resources[1]


def test_the_sdk_can_be_disabled_by_its_own_variable(monkeypatch, exporter):
    """OTEL_SDK_DISABLED=true: no span, and every call goes on working."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = OpenTelemetryTracing(SimpleSpanProcessor(exporter))
    request = ask(tracing, [])
    tracing.batch([request], facts=FACTS, start_s=0.0, end_s=1.0)
    tracing.end_request(request, method="POST", route="/score", status=200)

    assert request is None
    assert exporter.get_finished_spans() == ()


def test_a_collector_gets_the_spans_by_otlp_over_http(monkeypatch):
    """Configured by the standard variable alone; closing sends what is left."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = open_tracing(enabled=True)
    for number in range(3):
        request = ask(tracing, [], f"r-{number}")
        tracing.stage(request, name="queue", start_s=perf_counter(), end_s=perf_counter())
        tracing.end_request(request, method="POST", route="/score", status=200)
    tracing.close(timeout_s=30)
    collector.stop()

    assert set(collector.paths) == {"/v1/traces"}
    assert sorted(collector.spans) == ["POST /score"] * 3 + ["queue"] * 3


def test_a_collector_that_is_down_breaks_nothing(monkeypatch, caplog):
    """Its port refuses: requests go on, closing returns, the log says why."""
    collector = Collector()
    collector.stop()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = open_tracing(enabled=True)
    request = ask(tracing)
    tracing.end_request(request, method="POST", route="/score", status=200)
    tracing.close(timeout_s=0.5)

    assert request.trace_id == CALLER
    assert any(record.name.startswith("opentelemetry") for record in caplog.records)


def test_closing_does_not_wait_for_a_collector_that_hangs(monkeypatch):
    """It takes the spans and never answers: closing returns after its limit, while the request is still open."""
    gate = Event()
    collector = Collector(gate)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    tracing = open_tracing(enabled=True)
    tracing.end_request(ask(tracing), method="POST", route="/score", status=200)
    tracing.close(timeout_s=0.2)
    answered = list(collector.paths)
    reached = collector.asked.wait(30)
    gate.set()
    collector.stop()

    assert reached
    assert answered == []


def test_turned_off_it_hands_out_nothing_and_takes_everything():
    """No span, so no later call has anything to do."""
    tracing = open_tracing(enabled=False)
    request = ask(tracing)
    tracing.stage(request, name="queue", start_s=0.0, end_s=1.0)
    tracing.batch([request], facts=FACTS, start_s=0.0, end_s=1.0)
    tracing.end_request(request, method="POST", route="/score", status=200)
    tracing.close(timeout_s=1)

    assert isinstance(tracing, NoTracing)
    assert request is None


def test_turned_off_it_loads_no_package():
    """Seen from a fresh interpreter."""
    script = (
        "import sys; from service.tracing import open_tracing; open_tracing(enabled=False)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["opentelemetry.sdk.trace.export", "opentelemetry.exporter"])
def test_without_the_packages_the_error_names_the_extra(monkeypatch, package):
    """Turned on in an environment that has not got them."""
    for name in [name for name in sys.modules if name.startswith(package)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SettingsError, match=r"tracing: expected the package .* pip install 'relevance-tiers\[tracing\]'"
    ):
        open_tracing(enabled=True)


def test_a_variable_that_the_sdk_refuses_is_a_wrong_setting(monkeypatch):
    """One line instead of a stack trace."""
    monkeypatch.setenv("OTEL_SPAN_LINK_COUNT_LIMIT", "many")
    with pytest.raises(SettingsError, match="OTEL_SPAN_LINK_COUNT_LIMIT"):
        open_tracing(enabled=True)
