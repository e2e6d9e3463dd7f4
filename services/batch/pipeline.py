"""What is done with a batch: its input checked to the last line before any work, its results written to files.

Both may be broken off anywhere and run again. Texts are in memory a few lines at a time.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, Literal

from libs.common import metrics
from libs.common.contracts import batch_lines
from libs.common.contracts.chat import BatchItem
from libs.common.errors import ErrorCode, PermanentError
from libs.common.records.batch_results import EndedItem, ResultFile
from libs.common.records.batches import NewItem
from libs.common.sealing import Sealer
from services.batch.lines import Checker, Line, Offer, Problem, split
from services.batch.ports import Blobs, Closing, Input, Intake, Results

MAX_LINES: Final = 50_000
MAX_FILE_BYTES: Final = 200 << 20
MAX_PROBLEMS: Final = 100
# How much is checked, sealed and recorded at a time.
_GROUP_LINES: Final = 500
_GROUP_BYTES: Final = 4 << 20


async def take_in(intake: Intake, blobs: Blobs, sealer: Sealer, offer: Offer) -> None:
    """Check a batch's file: its items are recorded and started if every line is valid, else it fails with the faults.

    Raises:
        BatchEndedError: it was ended meanwhile.
    """
    with metrics.stage("validate"):
        try:
            source = await intake.begin()
            total, problems = await _check_lines(intake, source, blobs, sealer, offer)
        except PermanentError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
            total, problems = 0, [Problem(error.code.value, "The input file was deleted.", param="input_file_id")]
        if problems:
            await intake.refuse(problems)
        else:
            await intake.accept(total)


async def _check_lines(
    intake: Intake, source: Input, blobs: Blobs, sealer: Sealer, offer: Offer
) -> tuple[int, list[Problem]]:
    if source.bytes > MAX_FILE_BYTES:
        return 0, [Problem("file_too_large", f"The file is larger than {MAX_FILE_BYTES >> 20} MiB.")]
    checker = Checker(source.batch_id, source.endpoint, offer)
    problems: list[Problem] = []
    seen_lines = 0
    async with aclosing(blobs.read(source.tenant_id, source.blob_id)) as chunks:
        async for group in _groups(chunks):
            seen_lines += len(group)
            if seen_lines > MAX_LINES:
                return 0, [Problem("too_many_lines", f"The file has more than {MAX_LINES} requests.")]
            # On a thread: a group may take long enough to keep the process's other jobs waiting.
            items, found = await asyncio.to_thread(_checked, checker, group, sealer, source)
            problems += found
            if len(problems) >= MAX_PROBLEMS:
                return 0, problems[:MAX_PROBLEMS]
            if items and not problems:
                await intake.add(items)
    if seen_lines == 0:
        problems = [Problem(ErrorCode.EMPTY_FILE.value, "The file holds no requests.", param="input_file_id")]
    return checker.count, problems


async def _groups(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[Line]]:
    group: list[Line] = []
    size_bytes = 0
    async for line in split(chunks):
        group.append(line)
        size_bytes += len(line.content or b"")
        if len(group) == _GROUP_LINES or size_bytes >= _GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def _checked(checker: Checker, group: list[Line], sealer: Sealer, source: Input) -> tuple[list[NewItem], list[Problem]]:
    checked = [checker.check(line) for line in group]
    problems = [result for result in checked if isinstance(result, Problem)]
    items = [_sealed(result, sealer, source) for result in checked if isinstance(result, BatchItem)]
    return items, problems


def _sealed(item: BatchItem, sealer: Sealer, source: Input) -> NewItem:
    plain = item.model_dump_json().encode()
    return NewItem(
        item.position, item.custom_id, sealer.seal(plain, source.tenant_id, source.batch_id, str(item.position))
    )


async def write_results(results: Results, blobs: Blobs, sealer: Sealer) -> None:
    """Write the files of a batch and end it. A file without a line is not made.

    Raises:
        BatchEndedError: another attempt has ended it.
    """
    with metrics.stage("write_results"):
        closing = await results.begin()
        output = errors = None
        if closing.output_lines:
            output = await _write_file(results, closing, blobs, sealer, "output")
        if closing.error_lines:
            errors = await _write_file(results, closing, blobs, sealer, "error")
        await results.close(output, errors)


async def _write_file(
    results: Results, closing: Closing, blobs: Blobs, sealer: Sealer, kind: Literal["output", "error"]
) -> ResultFile:
    # A name that does not change between attempts: a later one takes the place of what an earlier one wrote.
    name = batch_lines.file_hex(closing.batch_id, kind)
    async with aclosing(_lines(results, closing, sealer, succeeded=kind == "output")) as lines:
        written = await blobs.write(closing.tenant_id, name, lines)
    filename = f"{closing.batch_id}_{kind}.jsonl"
    return ResultFile(f"file-{name}", name, filename, written.bytes, written.sha256)


async def _lines(results: Results, closing: Closing, sealer: Sealer, *, succeeded: bool) -> AsyncGenerator[bytes, None]:
    after = -1
    while page := await results.page(succeeded=succeeded, after=after):
        for item in page:
            yield _line(item, closing, sealer) + b"\n"
        after = page[-1].position


def _line(item: EndedItem, closing: Closing, sealer: Sealer) -> bytes:
    if item.sealed_result is not None:
        return sealer.open(item.sealed_result, closing.tenant_id, closing.batch_id, str(item.position), "result")
    why: Literal["cancelled", "expired"] = "expired" if item.status == "expired" else "cancelled"
    return batch_lines.unanswered_line(closing.batch_id, item.position, item.custom_id, why)
