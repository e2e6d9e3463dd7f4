"""Files read in limited processes: real and hostile ones, limits, cancellation, other threads, clean ends."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.ingest.document import Document, LoadError
from services.ingest.parser_server import FILES_PER_FORK
from services.ingest.parsing import Parser
from services.ingest.readers import ParseLimits, _Reader

_FILES = Path(__file__).parents[2] / "../shared/quality/files"
_SLOW_HTML = "<div>" * 100_000  # seconds of work, since the HTML standard's tree building is quadratic in depth


@pytest.fixture
def parser() -> Iterator[Parser]:
    with Parser(max_children=2) as opened:
        yield opened


def _write(folder: Path, text: str) -> Path:
    path = folder / "upload"
    path.write_text(text)
    return path


async def _parse(parser: Parser, path: Path, *args: Any, **options: Any) -> Document:
    with path.open("rb") as file:
        return await parser.parse(file, *args, **options)


async def _forks(parser: Parser) -> list[str]:
    server = parser.server_id
    if server is None:
        return []
    children = await asyncio.to_thread(Path(f"/proc/{server}/task/{server}/children").read_text)
    return children.split()


async def _until_forks(parser: Parser, count: int) -> None:
    async with asyncio.timeout(20):
        while len(await _forks(parser)) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # another process's state: nothing here to wait on


async def _until_ended(process: int) -> None:
    """Waits for a process to end; its parent need not have noticed."""
    status = Path(f"/proc/{process}/stat")
    async with asyncio.timeout(20):
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "name",
    [
        "real/docx_lists.docx",
        "real/test_blog.html",
        "real/program_design_in_the_unix_environment.pdf",
        "real/russian.cp866.txt",
        "real/winter_sports.epub",
        "hostile/xxe-passwd.xml",
        "hostile/xlsx-many-empty-rows.xlsx",
        "hostile/script-soup.html",
    ],
)
async def test_real_files_give_their_phrases(parser: Parser, name: str) -> None:
    manifest = _FILES / "manifest.jsonl"
    if not manifest.is_file():
        pytest.skip("the quality set is not beside the project (../shared/quality/files)")
    lines = manifest.read_text().splitlines()
    expected = next(entry["expected"] for entry in map(json.loads, lines) if entry["file"] == name)
    document = await _parse(parser, _FILES / name, Path(name).name)
    text = "".join(document.text.split())
    assert [phrase for phrase in expected["phrases"] if "".join(phrase.split()) not in text] == []
    assert [phrase for phrase in expected.get("absent", []) if phrase in text] == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hostile/zipbomb-400mb.docx", "unpacks"),
        ("hostile/billion-laughs.xml", "damaged"),
        ("hostile/deep.json", "nested"),
        ("real/password.pdf", "encrypted"),
        ("real/non_searchable.pdf", "looks scanned"),
        ("hostile/program.exe", "program"),
    ],
)
async def test_hostile_files_are_refused(parser: Parser, name: str, says: str) -> None:
    if not _FILES.is_dir():
        pytest.skip("the quality set is not beside the project (../shared/quality/files)")
    with pytest.raises(LoadError, match=says):
        await _parse(parser, _FILES / name, Path(name).name)


async def test_a_file_beyond_its_wall_time_is_stopped(parser: Parser, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="more time"):
        await _parse(parser, _write(tmp_path, _SLOW_HTML), "a.html", ParseLimits(wall_seconds=0.2))
    assert await _forks(parser) == []


async def test_a_file_beyond_its_processor_time_is_stopped(parser: Parser, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="more time"):
        await _parse(parser, _write(tmp_path, _SLOW_HTML), "a.html", ParseLimits(cpu_seconds=1))


async def test_a_file_beyond_its_memory_is_stopped(parser: Parser, tmp_path: Path) -> None:
    path = _write(tmp_path, "[" + "1," * 20_000_000 + "1]")
    with pytest.raises(LoadError, match="more memory"):
        await _parse(parser, path, "a.json", ParseLimits(memory_bytes=200 * 1024**2))


async def test_a_file_with_too_much_text_is_refused(parser: Parser, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="more text"):
        await _parse(parser, _write(tmp_path, "word " * 100_000), "a.txt", ParseLimits(result_bytes=10_000))
    await _until_forks(parser, 0)


async def test_a_long_text_arrives_whole(parser: Parser, tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {number} of a long text." for number in range(100_000))
    assert (await _parse(parser, _write(tmp_path, text), "a.txt")).text == text


async def test_cancelling_kills_the_process_that_reads(parser: Parser, tmp_path: Path) -> None:
    task = asyncio.create_task(_parse(parser, _write(tmp_path, _SLOW_HTML), "a.html"))
    await _until_forks(parser, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _until_forks(parser, 0)


async def test_no_more_processes_than_allowed_run_at_once(parser: Parser, tmp_path: Path) -> None:
    path = _write(tmp_path, _SLOW_HTML)
    tasks = [asyncio.create_task(_parse(parser, path, "a.html")) for _ in range(5)]
    await _until_forks(parser, 2)
    await asyncio.sleep(0.1)
    assert len(await _forks(parser)) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_file_does_not_wait_for_another_to_end(parser: Parser, tmp_path: Path) -> None:
    path = _write(tmp_path, _SLOW_HTML)
    short = asyncio.create_task(_parse(parser, path, "a.html", ParseLimits(wall_seconds=0.3)))
    long = asyncio.create_task(_parse(parser, path, "a.html"))
    with pytest.raises(LoadError, match="more time"):
        await short
    assert not long.done()
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)


async def test_a_killed_server_is_replaced(parser: Parser, tmp_path: Path) -> None:
    path = _write(tmp_path, "still here")
    await _parse(parser, path, "a.txt")
    first = parser.server_id
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await _until_ended(first)
    assert (await _parse(parser, path, "a.txt")).text == "still here"
    assert parser.server_id != first


async def test_one_process_reads_several_files_of_an_owner_and_none_of_another(parser: Parser, tmp_path: Path) -> None:
    for number in range(5):
        assert (await _parse(parser, _write(tmp_path, f"text {number}"), "a.txt", owner="a")).text == f"text {number}"
    (first,) = await _forks(parser)
    await _parse(parser, _write(tmp_path, "theirs"), "b.txt", owner="b")
    processes = set(await _forks(parser)) - {first}
    await _parse(parser, _write(tmp_path, "theirs"), "b.txt", owner="b")
    assert set(await _forks(parser)) - {first} == processes
    assert len(processes) == 1


async def test_after_a_number_of_files_a_fresh_process_reads(parser: Parser, tmp_path: Path) -> None:
    path = _write(tmp_path, "text")
    await _parse(parser, path, "a.txt")
    first = await _forks(parser)
    for _ in range(FILES_PER_FORK):
        await _parse(parser, path, "a.txt")
    assert await _forks(parser) != first


async def test_each_file_has_its_own_processor_time(parser: Parser, tmp_path: Path) -> None:
    slow, limits = _write(tmp_path, "<div>" * 12_000 + "text"), ParseLimits(cpu_seconds=1)
    for _ in range(8):
        await _parse(parser, slow, "a.html", limits)
    with pytest.raises(LoadError, match="more time"):
        await _parse(parser, _write(tmp_path, _SLOW_HTML), "a.html", limits)


@pytest.mark.parametrize("seen", [True, False], ids=["seen dead", "found dead"])
async def test_a_process_that_died_while_it_waited_is_replaced(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, seen: bool
) -> None:
    if not seen:  # it dies just after it was looked at
        monkeypatch.setattr(_Reader, "is_alive", lambda _: True)
    path = _write(tmp_path, "still here")
    await _parse(parser, path, "a.txt")
    (waiting,) = await _forks(parser)
    os.kill(int(waiting), signal.SIGKILL)
    await _until_ended(int(waiting))
    assert (await _parse(parser, path, "a.txt")).text == "still here"
    assert await _forks(parser) != [waiting]


async def test_closing_ends_the_server_and_its_forks(tmp_path: Path) -> None:
    parser = Parser(max_children=1)
    task = asyncio.create_task(_parse(parser, _write(tmp_path, _SLOW_HTML), "a.html"))
    await _until_forks(parser, 1)
    processes = [Path("/proc", process) for process in (*await _forks(parser), str(parser.server_id))]
    task.cancel()
    parser.close()
    await asyncio.gather(task, return_exceptions=True)
    assert [process for process in processes if process.exists()] == []


async def test_the_server_sees_none_of_our_environment(
    parser: Parser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCENT_TEST_SECRET", "do-not-leak")
    await _parse(parser, _write(tmp_path, "text"), "a.txt")
    environment = await asyncio.to_thread(Path(f"/proc/{parser.server_id}/environ").read_bytes)
    assert b"do-not-leak" not in environment


def test_it_works_on_a_uvloop_in_another_thread(tmp_path: Path) -> None:
    path = _write(tmp_path, "# Title\n\nFrom a thread.")
    documents: list[Document] = []

    async def read() -> None:
        with Parser(max_children=4) as parser:
            documents.extend(await asyncio.gather(*(_parse(parser, path, "a.md") for _ in range(8))))

    thread = threading.Thread(target=lambda: uvloop.run(read()))
    thread.start()
    thread.join(60)
    assert [document.title for document in documents] == ["Title"] * 8
