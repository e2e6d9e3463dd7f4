"""Reads files in resource-limited processes, since every parser is attack surface.

A warm server process (`services.ingest.parser_server`) forks for each file: no start-up cost, and a file that crashes,
hangs or swells takes nothing down but its own fork. The server is ours rather than multiprocessing's forkserver because
that one inherits the environment with its secrets, imports the caller's main module and returns pickles, which a
subverted parser could turn against the caller. Here the result is JSON.
"""

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGALRM, SIGKILL, SIGXCPU
from types import TracebackType
from typing import Final

import orjson

from libs.common.errors import ErrorCode, RetryableError
from services.ingest.document import Block, Document, LoadError
from services.ingest.parser_server import LENGTH_BYTES, OUT_OF_MEMORY, STATUS_BYTES

_ROOT: Final = Path(__file__).parents[2]
_MAX_FILENAME_CHARACTERS: Final = 255
_READ_BYTES: Final = 256 * 1024
_GRACE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What reading one file may use; the wall clock starts with the fork."""

    memory_bytes: int = 1024**3
    cpu_seconds: int = 20
    wall_seconds: float = 30.0
    result_bytes: int = 64 * 1024**2


class Parser:
    """Reads files, at most `max_children` at once, for callers of one event loop; it may run in any thread.

    The server process starts with the first file and again should it ever die; `close` ends it.
    """

    def __init__(self, max_children: int) -> None:
        self._slots = asyncio.Semaphore(max_children)
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> "Parser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def server_id(self) -> int | None:
        """The process id of the server, while there is one."""
        return self._server.pid if self._server else None

    def close(self) -> None:
        """Ends the server and every fork still at work."""
        if self._control is not None and self._server is not None:
            self._control.close()
            try:
                self._server.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._control = self._server = None

    async def parse(self, path: Path, filename: str, limits: ParseLimits | None = None) -> Document:
        """The document in the file at `path`; cancelling kills the process that reads it.

        Raises:
            LoadError: the file cannot be read, or not within its limits.
            RetryableError: the server died twice under this file's hands without a verdict on the file.
        """
        limits = limits or ParseLimits()
        async with self._slots:
            for _ in range(2):
                control = self._connected()
                reply = await _ask(control, path, filename, limits)
                if reply is not None:
                    return _document(reply)
                if self._control is control:  # else another caller has replaced the server already
                    self.close()
        raise RetryableError(ErrorCode.SERVER_ERROR, "The process that reads files stopped. Try again.")

    def _connected(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                    [sys.executable, "-m", "services.ingest.parser_server", str(theirs.fileno())],
                    env={"PYTHONPATH": str(_ROOT), "LANG": "C.UTF-8"},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        return self._control


async def _ask(control: socket.socket, path: Path, filename: str, limits: ParseLimits) -> bytes | None:
    """The fork's reply, or None when the server has gone."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs, path.open("rb") as file:
            name = filename[-_MAX_FILENAME_CHARACTERS:].encode("utf-8", "replace").decode()
            request = orjson.dumps({**asdict(limits), "filename": name})
            try:
                socket.send_fds(control, [request], [file.fileno(), theirs.fileno()])
            except (BrokenPipeError, ConnectionResetError):
                return None
        try:
            async with asyncio.timeout(limits.wall_seconds + _GRACE_SECONDS):
                received = await _receive(ours, limits.result_bytes)
        except TimeoutError:  # the fork has its own alarm; this is for a server that stands still
            return None
    return _verdict(received, limits)


async def _receive(source: socket.socket, limit_bytes: int) -> bytes:
    """Everything up to the end of the stream."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while data := await loop.sock_recv(source, _READ_BYTES):
        received += data
        if len(received) > limit_bytes + LENGTH_BYTES + STATUS_BYTES:
            raise LoadError("invalid_file", "The file holds more text than one document may; split it.")
    return bytes(received)


def _verdict(received: bytes, limits: ParseLimits) -> bytes | None:
    """The reply of a fork that gave one whole, or None when the server has gone.

    Raises:
        LoadError: the fork was stopped by a limit or crashed.
    """
    if not received:
        return None
    end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "big")
    if len(received) >= end:
        return received[LENGTH_BYTES:end]
    status = os.waitstatus_to_exitcode(int.from_bytes(received[-STATUS_BYTES:], "big"))
    if status in (-SIGALRM, -SIGXCPU):
        raise LoadError(
            "invalid_file", f"Reading the file takes more time than allowed ({limits.cpu_seconds} s); split it."
        )
    if status in (OUT_OF_MEMORY, -SIGKILL):  # the latter is the kernel's own answer to a machine out of memory
        megabytes = limits.memory_bytes // 1024**2
        raise LoadError("invalid_file", f"Reading the file needs more memory than allowed ({megabytes} MiB); split it.")
    raise LoadError("invalid_file", "The file is damaged or needs more memory than allowed: reading it broke off.")


def _document(reply: bytes) -> Document:
    try:
        fields = orjson.loads(reply)
        if "code" in fields:
            raise LoadError(fields["code"], fields["message"])
        blocks = [Block(text, kind, page, tuple(path)) for text, kind, page, path in fields["blocks"]]
        return Document.of(
            blocks, media_type=fields["media_type"], title=fields["title"], page_count=fields["page_count"]
        )
    except (ValueError, KeyError, TypeError) as error:  # only a subverted parser answers so
        raise LoadError("invalid_file", "The file is damaged: reading it gave no document.") from error
