"""What a log line holds, and what it must never hold."""

import asyncio
import contextlib
import io
import json
import logging
import threading
from collections.abc import Generator
from datetime import datetime
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.common.errors import ErrorCode, RetryableError
from libs.common.logs import _LineHandler, bind_context, configure_logging, get_logger, log_context
from libs.common.telemetry import configure_telemetry, span

API_KEY = "dct_0123456789abcdef_" + "A" * 43


class Output:
    """Stands for standard output, which pytest exchanges between a test and its fixtures."""

    def __init__(self) -> None:
        self._stream = io.StringIO()

    def configure(self, level: str) -> None:
        with contextlib.redirect_stdout(self._stream):
            configure_logging("chat", level)

    def text(self) -> str:
        return self._stream.getvalue()

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def lines() -> Generator[Output]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, threading.excepthook
    structlog.contextvars.clear_contextvars()
    output = Output()
    output.configure("debug")
    yield output
    root.handlers[:], root.level, threading.excepthook = before
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def test_line_has_the_fixed_keys_and_the_given_ones(lines: Output) -> None:
    get_logger("access").info("request served", status=200, seconds=0.25, tags=["a", "b"])
    (line,) = lines()
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert moment.utcoffset() is not None
    assert moment.microsecond % 1000 == 0
    assert line == {
        "level": "info",
        "event": "request served",
        "logger": "access",
        "service": "chat",
        "status": 200,
        "seconds": 0.25,
        "tags": ["a", "b"],
    }


def test_context_cannot_replace_the_fixed_keys(lines: Output) -> None:
    get_logger("x").info("e", service="forged", timestamp="never")
    (line,) = lines()
    assert line["service"] == "chat"
    assert line["timestamp"] != "never"


def test_levels_below_the_configured_one_are_dropped(lines: Output) -> None:
    lines.configure("WARNING")
    get_logger("x").info("quiet")
    get_logger("x").warning("loud")
    assert [line["event"] for line in lines()] == ["loud"]


def test_unknown_level_is_refused(lines: Output) -> None:
    with pytest.raises(ValueError, match="LOUD"):
        lines.configure("loud")
    assert lines() == []


@pytest.mark.parametrize("name", ["uvicorn.error", "celery", "kombu", "alembic", "some.library"])
def test_libraries_come_out_in_the_same_form(lines: Output, name: str) -> None:
    logging.getLogger(name).addHandler(logging.StreamHandler())
    lines.configure("info")
    logging.getLogger(name).warning("lost %s of %d", "two", 3)
    (line,) = [line for line in lines() if line["logger"] == name]
    assert (line["event"], line["level"], line["service"]) == ("lost two of 3", "warning", "chat")
    logging.getLogger(name).handlers.clear()


def test_libraries_that_log_bodies_are_kept_quiet_even_at_debug(lines: Output) -> None:
    logging.getLogger("openai").setLevel(logging.NOTSET)
    lines.configure("DEBUG")
    logging.getLogger("openai._base_client").debug("Request options: the question of a person")
    assert lines() == []


def test_unformattable_record_leaves_its_place_and_not_its_arguments(
    lines: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    (handler,) = (each for each in logging.getLogger().handlers if isinstance(each, _LineHandler))
    handler.handle(
        logging.makeLogRecord({"name": "library", "levelno": 30, "msg": "one %s", "args": ("private", "arguments")})
    )
    (line,) = lines()
    assert (line["event"], line["logger"]) == ("log record could not be written", "library")
    assert "private" not in lines.text() + capsys.readouterr().err


def test_log_context_adds_ids_and_restores_the_outer_ones(lines: Output) -> None:
    bind_context(request_id="req_1", tenant_id=None)
    with log_context(request_id="req_2", job_id="job_1"):
        get_logger("x").info("inside")
        logging.getLogger("library").info("also inside")
    get_logger("x").info("outside")
    inside, library, outside = lines()
    assert (inside["request_id"], inside["job_id"]) == ("req_2", "job_1")
    assert (library["request_id"], library["job_id"]) == ("req_2", "job_1")
    assert outside["request_id"] == "req_1"
    assert not {"job_id", "tenant_id"} & outside.keys()


async def test_context_stays_within_its_asyncio_task(lines: Output) -> None:
    async def work(job_id: str) -> None:
        bind_context(job_id=job_id)
        await asyncio.sleep(0)
        get_logger("x").info(job_id)

    await asyncio.gather(*(work(f"job_{number}") for number in range(5)))
    get_logger("x").info("after")
    *inside, after = lines()
    assert len(inside) == 5
    assert all(line["job_id"] == line["event"] for line in inside)
    assert "job_id" not in after


def test_line_names_the_current_span(lines: Output) -> None:
    exporter = InMemorySpanExporter()
    shutdown = configure_telemetry("chat", exporter)
    with span("embed"):
        get_logger("x").info("in a span")
    get_logger("x").info("in none")
    shutdown()
    (embed,) = exporter.get_finished_spans()
    inside, outside = lines()
    assert inside["trace_id"] == f"{embed.context.trace_id:032x}"
    assert inside["span_id"] == f"{embed.context.span_id:016x}"
    assert "trace_id" not in outside


@pytest.mark.parametrize(
    "key", ["authorization", "Authorization", "api_key", "x-api-key", "token", "access_token", "password", "secret",
            "client_secret", "cookie", "Set-Cookie"],
)  # fmt: skip
def test_values_under_secret_names_are_redacted(lines: Output, key: str) -> None:
    get_logger("x").info("e", **{key: "hunter2"}, headers={key: "hunter2"}, deep=[{"a": {key: ["hunter2"]}}])
    (line,) = lines()
    assert "hunter2" not in json.dumps(line)
    assert line[key] == line["headers"][key] == line["deep"][0]["a"][key] == "[redacted]"


def test_counts_of_tokens_are_no_secrets(lines: Output) -> None:
    get_logger("x").info("e", input_tokens=12, usage={"output_tokens": 3}, tokenizer="o200k", password=1234)
    (line,) = lines()
    assert (line["input_tokens"], line["usage"], line["tokenizer"]) == (12, {"output_tokens": 3}, "o200k")
    assert line["password"] == "[redacted]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key {API_KEY} refused", "key [redacted] refused"),
        ("Bearer abc.def-ghi_jkl", "[redacted]"),
        ("got bearer  eyJhbGciOi.J9 here", "got [redacted] here"),
        ("sk-proj-abcdef012345", "[redacted]"),
        ("at redis://user:p4ss@cache:6379/0 now", "at redis://[redacted]cache:6379/0 now"),
        ("postgresql://docent:a/b@c@db/docent", "postgresql://[redacted]db/docent"),
        ("GET /v1/files?token=abc&limit=2", "GET /v1/files?[redacted]&limit=2"),
        ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'[redacted]'}"),
        ("a risk-averse person at https://example.com/x?q=1", "a risk-averse person at https://example.com/x?q=1"),
    ],
)
def test_secrets_within_text_are_redacted(lines: Output, text: str, expected: str) -> None:
    get_logger("x").info(text, note=text, nested={"list": [text]})
    logging.getLogger("library").info("%s", text)
    native, library = lines()
    assert native["event"] == native["note"] == native["nested"]["list"][0] == library["event"] == expected


def test_a_line_is_one_line_whatever_is_in_it(lines: Output) -> None:
    forged = 'x\n{"level":"info"}\r\x00\x1b[31m\u2028'
    get_logger("x").info(forged, note=forged)
    written = lines.text()
    assert written.count("\n") == 1
    assert "\x1b" not in written
    assert json.loads(written)["note"] == forged


def test_values_json_cannot_hold_do_not_cost_the_line(lines: Output) -> None:
    class Question:
        def __repr__(self) -> str:
            return "what a person asked"

    loop: list[object] = []
    loop.append(loop)
    get_logger("x").info("\ud800", big=2**70, nan=float("nan"), question=Question(), raw=b"raw", loop=loop)
    get_logger("x").info("long", text="x" * 100_000)
    strange, long = lines()
    assert strange["event"] == "?"
    assert (strange["big"], strange["nan"], strange["question"]) == (str(2**70), None, "<Question>")
    assert strange["raw"] == "<bytes>"
    assert "<list>" in json.dumps(strange["loop"])
    assert len(long["text"]) < 10_000


def _fail(secret_argument: str) -> None:
    raise ValueError(secret_argument)


def test_exception_gives_type_and_place_but_no_text(lines: Output) -> None:
    try:
        _fail("what a person asked")
    except ValueError:
        get_logger("x").exception("failed")
        logging.getLogger("library").exception("also failed:\nValueError: what a person asked")
    native, library = lines()
    for line in (native, library):
        assert line["exception"]["type"] == "ValueError"
        here, there = line["exception"]["where"]
        assert here.rpartition(":")[0].endswith("test_logs:test_exception_gives_type_and_place_but_no_text")
        assert there.rpartition(":")[0].endswith("test_logs:_fail")
        assert "person" not in json.dumps(line)
    assert library["event"] == "also failed:"


def test_exception_of_ours_keeps_its_message_and_its_causes_types(lines: Output) -> None:
    try:
        try:
            _fail("what a person asked")
        except ValueError as cause:
            raise RetryableError(ErrorCode.LLM_TIMEOUT, "The model did not answer in time.") from cause
    except RetryableError as error:
        get_logger("x").warning("failed", exc_info=error)
    exception = lines()[0]["exception"]
    assert exception["type"] == "libs.common.errors.RetryableError"
    assert (exception["code"], exception["message"]) == ("llm_timeout", "The model did not answer in time.")
    assert exception["causes"] == ["ValueError"]


def test_only_the_last_frames_are_kept(lines: Output) -> None:
    def dive(depth: int) -> None:
        if depth == 0:
            raise KeyError
        dive(depth - 1)

    try:
        dive(50)
    except KeyError:
        get_logger("x").exception("failed")
    where = lines()[0]["exception"]["where"]
    assert len(where) == 12
    assert all("dive" in place for place in where)


def test_members_of_an_exception_group_are_named(lines: Output) -> None:
    get_logger("x").error("failed", exc_info=ExceptionGroup("private", [KeyError("private"), OSError("private")]))
    (line,) = lines()
    assert line["exception"]["causes"] == ["KeyError", "OSError"]
    assert "private" not in json.dumps(line)


def test_death_of_a_thread_is_logged_without_its_message(lines: Output) -> None:
    thread = threading.Thread(target=_fail, args=("what a person asked",), name="heartbeat")
    thread.start()
    thread.join(5)
    (line,) = lines()
    assert (line["event"], line["thread"], line["exception"]["type"]) == ("thread died", "heartbeat", "ValueError")
    assert "person" not in json.dumps(line)
