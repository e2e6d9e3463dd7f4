import orjson
import pytest

from libs.common.errors import ErrorCode, PermanentError, PlatformError, RetryableError, error_for, not_found
from libs.common.tasks.replies import error_block
from libs.common.tasks.reply_hub import error_from
from libs.common.tasks.wire import error_body


@pytest.mark.parametrize("code", list(ErrorCode))
def test_a_code_decides_the_class(code: ErrorCode) -> None:
    error = error_for(code, "A sentence.", param="messages[0]", retry_after_seconds=2)
    assert isinstance(error, RetryableError if code.kind.retryable else PermanentError)
    assert 400 <= code.kind.status < 600


@pytest.mark.parametrize("code", list(ErrorCode))
def test_an_error_survives_the_queue(code: ErrorCode) -> None:
    sent = error_for(code, "Ä sentence.", param="input", retry_after_seconds=1.5)
    received = error_from(orjson.dumps(error_body(sent)))
    assert type(received) is type(sent)
    assert (received.code, received.message, received.param, received.retry_after_seconds) == (
        code,
        "Ä sentence.",
        "input",
        1.5,
    )


def test_a_stream_s_error_event_is_what_the_sdks_read() -> None:
    block = error_block(PlatformError(ErrorCode.LLM_TIMEOUT, "Too slow."))
    assert block.startswith(b"data: ")
    assert block.endswith(b"\n\n")
    assert orjson.loads(block[6:]) == {
        "error": {"message": "Too slow.", "type": "upstream_error", "param": None, "code": "llm_timeout"}
    }


def test_a_missing_object_is_named_but_not_its_owner() -> None:
    assert not_found("file", "file_1").message == "No file found with id 'file_1'."
