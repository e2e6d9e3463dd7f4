"""The demonstration: start everything, then use it as a person would, through the official SDK.

    python -m tools.demo --state-dir .local

Ends with exit code 0 only if every step gave what it should.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from openai import OpenAI
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from libs.local.ports import Ports

SAMPLES: Final = Path(__file__).parents[1] / "samples"
DOCUMENTS: Final = ("*.pdf", "*.docx", "*.html", "*.csv", "*.txt", "operations-runbook.md")
QUESTIONS: Final = SAMPLES / "questions.jsonl"
FOLLOW_UP: Final = "And how large may its input file be?"
FOLLOW_UP_ANSWER: Final = "200 MiB"

console = Console(highlight=False)


class DemoError(Exception):
    """A step did not give what it should; the message says which."""


@contextmanager
def step(text: str) -> Iterator[None]:
    """A line with a spinner while something is done, and its time when it is."""
    columns = (SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(text, total=1)
        yield
        progress.update(task, completed=1)


def main() -> int:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description="Show what Docent does.")
    parser.add_argument("--state-dir", type=Path, default=Path(".local"))
    state_dir = parser.parse_args().state_dir
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "libs.local", "up", "--state-dir", str(state_dir)], check=True)
    url = f"http://127.0.0.1:{Ports.from_environment(os.environ).gateway}/v1"
    client = OpenAI(base_url=url, api_key=(state_dir / "api-key").read_text().strip())
    try:
        show(client)
    except DemoError as error:
        console.print(f"[red]The demonstration failed:[/] {error}")
        return 1
    console.print(
        Panel(
            f"API     {url}   (key in {state_dir}/api-key)\n"
            f"Health  {url.removesuffix('/v1')}/readyz   Metrics  {url.removesuffix('/v1')}/metrics\n"
            f"Logs    {state_dir}/logs   (make logs)      Stop     make down",
            title=f"Everything runs; shown in {time.monotonic() - started:.0f} s",
        )
    )
    return 0


def show(client: OpenAI) -> None:
    """Every step in turn."""
    model = next(iter(client.models.list())).id
    questions = [json.loads(line) for line in QUESTIONS.read_text().splitlines() if line.strip()]
    store_id = upload(client)
    in_pdf = next(question for question in questions if question["file"] == "handbook.pdf")
    ask(client, model, store_id, in_pdf)
    converse(client, model, store_id, in_pdf)
    answerable = [question for question in questions if question["answer_contains"]]
    run_batch(client, model, store_id, [answerable[index % len(answerable)] for index in range(10)])


def upload(client: OpenAI) -> str:
    """Make the sample documents searchable."""
    paths = sorted(path for pattern in DOCUMENTS for path in SAMPLES.glob(pattern))
    with step(f"Uploading and indexing {len(paths)} documents"):
        store = client.vector_stores.create(name="Docent's handbook")
        batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=paths, poll_interval_ms=200)
    if batch.file_counts.completed != len(paths):
        raise DemoError(f"only {batch.file_counts.completed} of {len(paths)} documents became searchable")
    return store.id


def ask(client: OpenAI, model: str, store_id: str, question: dict[str, Any]) -> None:
    """Stream one cited answer."""
    console.rule("A question about a PDF, streamed")
    console.print(Text(question["question"], style="bold"))
    annotations: list[dict[str, Any]] = []
    answer = ""
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question["question"]}],
        stream=True,
        extra_body={"vector_store_ids": [store_id]},
    )
    for chunk in stream:
        delta = chunk.choices[0].delta
        answer += delta.content or ""
        console.print(delta.content or "", end="", style="cyan")
        annotations += getattr(delta, "annotations", None) or []
    console.print()
    for annotation in annotations:
        page = f", page {annotation['page']}" if annotation.get("page") else ""
        console.print(f"  [{annotation['number']}] {annotation['filename']}{page}:", markup=False, style="green")
        console.print(Text(f"      “{' '.join(annotation['text'].split())}”", style="dim"))
    if question["answer_contains"] not in " ".join(answer.split()):
        raise DemoError(f"the answer does not hold “{question['answer_contains']}”")
    if question["file"] not in [annotation["filename"] for annotation in annotations]:
        raise DemoError(f"the answer does not cite {question['file']}")


def converse(client: OpenAI, model: str, store_id: str, question: dict[str, Any]) -> None:
    """Two turns of an encrypted conversation."""
    console.rule("A conversation, encrypted at rest")
    conversation = client.conversations.create()
    for text in (question["question"], FOLLOW_UP):
        response = client.responses.create(
            model=model,
            conversation=conversation.id,
            input=text,
            tools=[{"type": "file_search", "vector_store_ids": [store_id]}],
        )
        console.print(Text(f"> {text}", style="bold"))
        console.print(Text(response.output_text, style="cyan"))
    if FOLLOW_UP_ANSWER not in response.output_text:
        raise DemoError(f"the second turn does not hold “{FOLLOW_UP_ANSWER}”")
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    console.print(f"The conversation holds {len(items)} items; on disk each is ciphertext.")
    if [item.type for item in items].count("message") != 4:
        raise DemoError("the conversation does not hold its four messages")


def run_batch(client: OpenAI, model: str, store_id: str, questions: list[dict[str, Any]]) -> None:
    """Ten questions as a batch."""
    console.rule(f"A batch of {len(questions)} questions")
    lines = [
        {
            "custom_id": f"question-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": model,
                "messages": [{"role": "user", "content": question["question"]}],
                "vector_store_ids": [store_id],
            },
        }
        for number, question in enumerate(questions)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    with step("Running the batch"):
        file = client.files.create(file=("questions.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        deadline = time.monotonic() + 60
        while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < deadline:
            time.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
    if batch.status != "completed" or batch.output_file_id is None:
        raise DemoError(f"the batch is {batch.status}")
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    by_id = {result["custom_id"]: result["response"]["body"] for result in results}
    right = sum(
        question["answer_contains"] in " ".join(by_id[f"question-{number}"]["choices"][0]["message"]["content"].split())
        for number, question in enumerate(questions)
    )
    console.print(f"{len(results)} of {len(questions)} answered, {right} as expected.")
    if len(results) != len(questions):
        raise DemoError(f"{len(results)} of {len(questions)} questions were answered")


if __name__ == "__main__":
    raise SystemExit(main())
