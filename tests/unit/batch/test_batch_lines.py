"""Lines of output and error files."""

import orjson

from libs.common.contracts import batch_lines
from libs.common.errors import ErrorCode, PermanentError


def test_an_answered_item_has_its_body_and_no_error() -> None:
    line = orjson.loads(batch_lines.output_line("batch_1", 3, "mine", {"object": "chat.completion"}))
    assert line["custom_id"] == "mine"
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    assert line["response"]["body"] == {"object": "chat.completion"}
    assert line["response"]["request_id"] == batch_lines.request_id("batch_1", 3)
    assert line["id"].startswith("batch_req_")


def test_a_failed_item_shows_the_error_as_http_would() -> None:
    error = PermanentError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "Too long.", param="messages")
    line = orjson.loads(batch_lines.error_line("batch_1", 0, "mine", error))
    assert line["error"] == {"code": "context_length_exceeded", "message": "Too long."}
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"] == {
        "message": "Too long.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_an_unanswered_item_says_why() -> None:
    cancelled = orjson.loads(batch_lines.unanswered_line("batch_1", 0, "a", "cancelled"))
    expired = orjson.loads(batch_lines.unanswered_line("batch_1", 0, "a", "expired"))
    assert (cancelled["response"], cancelled["error"]["code"]) == (None, "batch_cancelled")
    assert (expired["response"], expired["error"]["code"]) == (None, "batch_expired")


def test_ids_are_the_same_every_time_and_differ_between_items_batches_and_files() -> None:
    def line_id(batch_id: str, position: int) -> str:
        made: str = orjson.loads(batch_lines.output_line(batch_id, position, "x", {}))["id"]
        return made

    assert line_id("batch_1", 0) == line_id("batch_1", 0)
    assert len({line_id("batch_1", 0), line_id("batch_1", 1), line_id("batch_2", 0)}) == 3
    assert batch_lines.file_hex("batch_1", "output") != batch_lines.file_hex("batch_1", "error")


def test_a_line_is_one_line_whatever_it_holds() -> None:
    line = batch_lines.output_line("batch_1", 0, "a\nb\u2028", {"text": "one\ntwo\r\n"})
    assert line.splitlines() == [line]
