"""Export traces as OpenTelemetry spans over OTLP/HTTP: one span for each action, with a child for each stage.

Only this module uses OpenTelemetry. The agent imports it only if `traces.endpoint` is set, because the libraries are an
optional extra. The library exports spans in batches on its own thread. If the collector does not answer, spans are
lost, but actions are not affected. The library also reads the standard `OTEL_*` variables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agent.domain.outcome import Result
from agent.telemetry.metrics import fault
from agent.telemetry.traces import Trace, Traces

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from agent.domain.actions import Action
    from agent.domain.outcome import Outcome
    from agent.settings import AgentSection, TracesSettings

# Timeout of one request to the collector, in seconds.
EXPORT_SECONDS = 5.0
# Maximum number of seconds that the shutdown waits for the export of the remaining spans. Later spans are lost.
CLOSE_SECONDS = 3.0
PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetry(Traces):
    """Creates and exports the spans of one agent. The process has at most one."""

    def __init__(self, settings: TracesSettings, agent: AgentSection, version: str) -> None:
        resource = Resource.create(
            {
                "service.name": "sealci-agent",
                "service.version": version,
                "service.instance.id": agent.id,
                "sealci.pool": agent.pool,
            }
        )
        url = settings.endpoint.rstrip("/") + "/v1/traces"
        self.processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=EXPORT_SECONDS))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self.processor)
        self.tracer = provider.get_tracer("sealci-agent", version)

    def begin(self, action: Action, *, adopted: bool = False) -> Trace:
        """Begin the span of an action, as a child of the scheduler's span that the action names.

        The span records as an attribute whether the session was adopted from another agent.
        """
        attributes: dict[str, str | int | bool] = {
            "cicd.pipeline.task.name": action.name or action.key.action_id,
            "cicd.pipeline.task.run.id": action.key.action_id,
            "sealci.attempt": action.key.attempt,
            "sealci.claim": action.key.claim,
            "sealci.adopted": adopted,
        }
        if action.image:
            attributes["container.image.name"] = action.image
        if action.services:
            attributes["sealci.services"] = ",".join(each.name for each in action.services)
        parent = PROPAGATOR.extract({"traceparent": action.traceparent})
        return Spans(self.tracer, self.tracer.start_span("action", parent, attributes=attributes))

    def close(self) -> None:
        """Send the remaining spans. Blocks for `CLOSE_SECONDS` at most."""
        self.processor.force_flush(int(CLOSE_SECONDS * 1000))
        self.processor.shutdown()  # type: ignore[no-untyped-call]


class Spans(Trace):
    """The span of one action, and the child span of its current stage."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        carrier: dict[str, str] = {}
        self.context = set_span_in_context(span)
        PROPAGATOR.inject(carrier, self.context)
        super().__init__(carrier.get("traceparent", ""))
        self.tracer = tracer
        self.span = span
        self.stage: Span | None = None
        self.name = ""

    def enter(self, stage: str) -> None:
        """End the span of the previous stage, and begin the span of `stage`."""
        if stage == self.name:
            return
        if self.stage is not None:
            self.stage.end()
        self.name = stage
        self.stage = self.tracer.start_span(stage, self.context)

    def decided(self, outcome: Outcome) -> None:
        """Record the outcome on the span of the action. A failure also marks the span of its stage."""
        result = {"sealci.outcome": outcome.result.value, "sealci.stage": outcome.stage.value}
        if outcome.reason is not None:
            result |= {"error.type": outcome.reason.value, "sealci.fault": fault(outcome.reason)}
        self.span.set_attributes(result)
        if outcome.exit_code is not None:
            self.span.set_attribute("process.exit.code", outcome.exit_code)
        if outcome.result is Result.FAILED:
            status = Status(StatusCode.ERROR, outcome.message)
            self.span.set_status(status)
            # The wait for services is a part of the set-up, and has a span of its own.
            if self.stage is not None and self.name in (outcome.stage.value, "services"):
                self.stage.set_status(status)

    def end(self) -> None:
        """End the span of the action and the span of its current stage."""
        if self.stage is not None:
            self.stage.end()
        self.span.end()
