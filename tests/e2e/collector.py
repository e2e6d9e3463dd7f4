"""A collector of traces for tests: takes OTLP over HTTP and keeps the spans."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """The spans received so far, by the service that sent them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._spans: list[tuple[str, Span]] = []
        self._lock = threading.Lock()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            for resource in request.resource_spans:
                attributes = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
                service = attributes.get("service.name", "")
                self._spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]

    def trace(self, trace_id: str) -> list[tuple[str, Span]]:
        with self._lock:
            return [(service, span) for service, span in self._spans if span.trace_id.hex() == trace_id]

    def spans(self) -> list[tuple[str, Span]]:
        with self._lock:
            return list(self._spans)


@contextmanager
def running_collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002, ARG002 - named by http.server
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield collector
    server.shutdown()
    server.server_close()
    thread.join()
