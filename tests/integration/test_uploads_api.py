"""Uploads in parts through the official SDK, against a whole stack."""

import hashlib
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from libs.local.running import Stack, running_stack

_PROGRAMS = ("broker", "cache", "vectors", "models", "ingest", "gateway")
_CONTENT = b"".join(b"line %d of a file that comes in parts\n" % number for number in range(2000))
_PARTS = [_CONTENT[:30_000], _CONTENT[30_000:60_000], _CONTENT[60_000:]]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("stack"), only=_PROGRAMS) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{stack.url}/v1", api_key=stack.api_key, max_retries=0, timeout=30) as client:
        yield client


def _begin(client: OpenAI, size: int = len(_CONTENT)) -> str:
    upload = client.uploads.create(bytes=size, filename="../parts.txt", mime_type="text/plain", purpose="assistants")
    assert (upload.status, upload.bytes, upload.filename, upload.file) == ("pending", size, "parts.txt", None)
    return upload.id


def _add(client: OpenAI, upload_id: str, content: bytes) -> str:
    part = client.uploads.parts.create(upload_id, data=("part", BytesIO(content)))
    assert part.upload_id == upload_id
    return part.id


def _blobs(stack: Stack) -> int:
    return sum(path.is_file() for path in (stack.state_dir / "blobs").rglob("*"))


def test_parts_become_one_file_in_the_order_given(stack: Stack, client: OpenAI) -> None:
    blobs_before = _blobs(stack)
    upload_id = _begin(client)
    third, first, second = (_add(client, upload_id, _PARTS[index]) for index in (2, 0, 1))
    md5 = hashlib.md5(_CONTENT, usedforsecurity=False).hexdigest()
    upload = client.uploads.complete(upload_id, part_ids=[first, second, third], md5=md5)
    assert upload.status == "completed"
    assert upload.file is not None
    assert (upload.file.bytes, upload.file.filename, upload.file.purpose) == (len(_CONTENT), "parts.txt", "assistants")
    assert client.files.content(upload.file.id).read() == _CONTENT
    give_up_at = time.monotonic() + 20
    while _blobs(stack) != blobs_before + 1:  # the parts go by jobs
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    client.files.delete(upload.file.id)


def test_the_sdks_own_way_to_upload_a_large_file(client: OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    path.write_bytes(_CONTENT)
    upload = client.uploads.upload_file_chunked(
        file=path, mime_type="text/plain", purpose="assistants", part_size=25_000
    )
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == _CONTENT


@pytest.mark.parametrize(
    ("parts", "md5", "param"),
    [
        ([0, 1], None, "part_ids"),  # too few bytes
        ([0, 1, 2, 0], None, "part_ids[3]"),
        ([0, 1, None], None, "part_ids[2]"),
        ([0, 1, 2], "0" * 32, "md5"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_may_be_mended(
    client: OpenAI, parts: list[int | None], md5: str | None, param: str
) -> None:
    upload_id = _begin(client)
    ids = [_add(client, upload_id, content) for content in _PARTS]
    chosen = [ids[index] if index is not None else "part_unknown" for index in parts]
    with pytest.raises(openai.BadRequestError) as caught:
        client.uploads.complete(upload_id, part_ids=chosen, md5=md5 or openai.omit)
    assert caught.value.param == param
    assert client.uploads.complete(upload_id, part_ids=ids).status == "completed"


def test_more_bytes_than_announced_are_refused(client: OpenAI) -> None:
    upload_id = _begin(client, size=10)
    with pytest.raises(openai.BadRequestError) as caught:
        _add(client, upload_id, b"eleven bytes")
    assert caught.value.param == "data"


def test_a_cancelled_upload_takes_nothing_more(client: OpenAI) -> None:
    upload_id = _begin(client)
    part_id = _add(client, upload_id, _PARTS[0])
    assert client.uploads.cancel(upload_id).status == "cancelled"
    assert client.uploads.cancel(upload_id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        _add(client, upload_id, _PARTS[1])
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload_id, part_ids=[part_id])


def test_a_completed_upload_cannot_be_completed_or_cancelled_again(client: OpenAI) -> None:
    upload_id = _begin(client, size=3)
    part_id = _add(client, upload_id, b"abc")
    key = {"Idempotency-Key": "complete-once"}
    first = client.uploads.complete(upload_id, part_ids=[part_id], extra_headers=key)
    again = client.uploads.complete(upload_id, part_ids=[part_id], extra_headers=key)
    assert again == first
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload_id, part_ids=[part_id])
    with pytest.raises(openai.BadRequestError):
        client.uploads.cancel(upload_id)


def test_an_empty_upload_is_no_file(client: OpenAI) -> None:
    upload_id = _begin(client, size=0)
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload_id, part_ids=["part_unknown"])
    with pytest.raises(openai.BadRequestError) as caught:
        _add(client, upload_id, b"")
    assert caught.value.code == "empty_file"


def test_a_missing_upload_is_a_404(client: OpenAI) -> None:
    for call in (
        lambda: _add(client, "upload_missing", b"x"),
        lambda: client.uploads.cancel("upload_missing"),
        lambda: client.uploads.complete("upload_missing", part_ids=["part_x"]),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
