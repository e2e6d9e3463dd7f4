"""A scan is uploaded like any other file, and its pages answer."""

from openai import OpenAI

from tests.e2e.conftest import MODEL, SAMPLES
from tests.scans import scanned


def test_a_scanned_page_answers_and_is_cited(client: OpenAI) -> None:
    store = client.vector_stores.create(name="scans")
    scan = ("scan.pdf", scanned(SAMPLES / "handbook.pdf", pages=(1, 4)))
    attached = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=scan, poll_interval_ms=200)
    assert (attached.status, attached.last_error) == ("completed", None)
    response = client.responses.create(
        model=MODEL,
        input="How many requests may a batch hold?",
        tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
    )
    assert "50,000 requests" in response.output_text
    [message] = [item for item in response.output if item.type == "message"]
    [text] = [part for part in message.content if part.type == "output_text"]
    extensions = [annotation.model_dump() for annotation in text.annotations]
    assert [(found["filename"], found["page"]) for found in extensions] == [("scan.pdf", 2)]
