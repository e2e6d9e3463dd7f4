import base64

import orjson
import pytest

from libs.common import keys
from libs.common.errors import ErrorCode, PermanentError
from libs.common.keyring import Keyring
from libs.common.tasks.wire import Envelope, MessageSealer, celery_message, payload_of

_ENVELOPE = Envelope(id="id_1", task="chat.answer", tenant_id="t", issued_at=1.0)


def _payload(message: bytes) -> str:
    return payload_of(base64.b64decode(orjson.loads(message)["body"]))


def test_a_message_opens_where_it_was_sealed_for(keyring: Keyring) -> None:
    sealer = MessageSealer(keyring)
    payload = _payload(sealer.seal("chat", _ENVELOPE, b"body\nof two lines"))
    receiver = MessageSealer(Keyring.parse(keyring.limited_to([keys.queue_purpose("chat")])))
    assert receiver.open("chat", "chat.answer", "id_1", payload) == (_ENVELOPE, b"body\nof two lines")


@pytest.mark.parametrize(
    "place", [("ingest", "chat.answer", "id_1"), ("chat", "chat.embed", "id_1"), ("chat", "chat.answer", "id_2")]
)
def test_a_message_opens_nowhere_else(keyring: Keyring, place: tuple[str, str, str]) -> None:
    sealer = MessageSealer(keyring)
    payload = _payload(sealer.seal("chat", _ENVELOPE, b"body"))
    with pytest.raises(PermanentError) as refused:
        sealer.open(*place, payload)
    assert refused.value.code is ErrorCode.DECRYPT_FAILED


def test_a_message_of_another_keyring_is_refused(keyring: Keyring) -> None:
    payload = _payload(MessageSealer(Keyring.parse(Keyring.generate())).seal("chat", _ENVELOPE, b"body"))
    with pytest.raises(PermanentError) as refused:
        MessageSealer(keyring).open("chat", "chat.answer", "id_1", payload)
    assert refused.value.code is ErrorCode.DECRYPT_FAILED


@pytest.mark.parametrize("payload", ["", "a", "é", "%%%%", "AAAA", "QUJD" * 40])
def test_rubbish_is_refused(keyring: Keyring, payload: str) -> None:
    with pytest.raises(PermanentError) as refused:
        MessageSealer(keyring).open("chat", "chat.answer", "id_1", payload)
    assert refused.value.code is ErrorCode.DECRYPT_FAILED


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"[[]]", b"[[1]]", b"{}", b"null", b"1", b'{"0":["a"]}'])
def test_a_body_of_another_form_is_refused(body: bytes) -> None:
    with pytest.raises(PermanentError) as refused:
        payload_of(body)
    assert refused.value.code is ErrorCode.DECRYPT_FAILED


def test_a_job_s_request_is_bound_to_its_job(keyring: Keyring) -> None:
    sealer = MessageSealer(keyring)
    sealed = sealer.seal_job_request("ingest", "job_1", b"request")
    assert sealer.open_job_request("ingest", "job_1", sealed) == b"request"
    for queue, job_id in (("ingest", "job_2"), ("batch", "job_1")):
        with pytest.raises(PermanentError):
            sealer.open_job_request(queue, job_id, sealed)


def test_the_payload_comes_back_out_of_the_message() -> None:
    assert _payload(celery_message("chat", "chat.answer", "id_1", "payload")) == "payload"
