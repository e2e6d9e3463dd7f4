"""Processes that read files within limits, since every parser is attack surface.

A warm server process (`services.ingest.parser_server`) forks the readers: no start-up cost, and a file that crashes,
hangs or swells takes nothing down but its own fork. A fork that did well reads on, but only files of the same owner:
should one of them subvert it, it sees nobody else's. The server is ours rather than multiprocessing's forkserver
because that one inherits the environment with its secrets, imports the caller's main module and returns pickles, which
a subverted parser could turn against the caller. Here the result is JSON.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGALRM, SIGKILL, SIGXCPU
from typing import BinaryIO, Final

import orjson

from libs.common.errors import ErrorCode, RetryableError
from services.ingest.document import LoadError
from services.ingest.parser_server import HEAD_BYTES, LENGTH_BYTES, OUT_OF_MEMORY, STATUS_BYTES

_ROOT: Final = Path(__file__).parents[2]
# Nothing of ours, and libraries that compute keep to one thread and one heap: a fork's address space is limited.
_ENVIRONMENT: Final = {
    "PYTHONPATH": str(_ROOT),
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}
_READ_BYTES: Final = 256 * 1024
_GRACE_SECONDS: Final = 10.0


Request = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """What one request may use; a process that has grown by `growth_bytes` is replaced by a new one."""

    memory_bytes: int = 1024**3
    cpu_seconds: int = 20
    wall_seconds: float = 30.0
    result_bytes: int = 64 * 1024**2
    growth_bytes: int = 64 * 1024**2


class Readers:
    """At most `most` processes at once, for callers of one event loop; it may run in any thread.

    The server process starts with the first file and again should it ever die; `close` ends it.
    """

    def __init__(self, most: int) -> None:
        self._slots = asyncio.Semaphore(most)
        self._idle: list[_Reader] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def server_id(self) -> int | None:
        """The process id of the server, while there is one."""
        return self._server.pid if self._server else None

    def close(self) -> None:
        """Ends the server and every fork."""
        while self._idle:
            self._idle.pop().close()
        if self._control is not None and self._server is not None:
            self._control.close()
            try:
                self._server.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._control = self._server = None

    async def ask(self, file: BinaryIO, request: Request, limits: ParseLimits, owner: str) -> bytes:
        """The reply to a request about a local file; cancelling kills the process that reads it.

        Args:
            file: open for reading; what was written to it is flushed.
            owner: files of different owners are never read by the same process.

        Raises:
            LoadError: the file cannot be read, or not within its limits.
            RetryableError: the server died twice under this file's hands without a verdict on the file.
        """
        async with self._slots:
            for _ in range(2):
                control = self._connected()
                reply = await self._read(control, file, request, limits, owner)
                if reply is not None:
                    return reply
                if self._control is control:  # else another caller has replaced the server already
                    self.close()
        raise RetryableError(ErrorCode.SERVER_ERROR, "The process that reads files stopped. Try again.")

    async def _read(
        self, control: socket.socket, file: BinaryIO, request: Request, limits: ParseLimits, owner: str
    ) -> bytes | None:
        """A reader's reply, or None when the server has gone."""
        reader = self._take_idle(limits, owner)
        if reader is not None and not reader.begin(file, request):
            # It died while it waited, which is no verdict on this file.
            reader.close()
            reader = None
        if reader is None:
            reader = _Reader.fork(control, limits, owner)
            if reader is None:
                return None
            reader.begin(file, request)  # one that dies at once tells by its results
        try:
            reply = await reader.reply()
        except BaseException:
            reader.close()
            raise
        if reader.goes_on and self._control is control:
            self._idle.append(reader)
        else:
            reader.close()
        return reply

    def _take_idle(self, limits: ParseLimits, owner: str) -> "_Reader | None":
        for index, reader in enumerate(self._idle):
            if reader.limits == limits and reader.owner == owner:
                del self._idle[index]
                if reader.is_alive():
                    return reader
                reader.close()
                return None
        if self._idle:  # a new one is made in the place of one that is of no use now
            self._idle.pop(0).close()
        return None

    def _connected(self) -> socket.socket:
        if self._server is not None and self._server.poll() is not None:
            self.close()  # its readers would go on, but nobody would tell how they ended
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                    [sys.executable, "-m", "services.ingest.parser_server", str(theirs.fileno())],
                    env=_ENVIRONMENT,
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        return self._control


class _Reader:
    """A fork of the server, which reads one file after the other.

    Attributes:
        goes_on: whether it takes another file.
    """

    def __init__(self, requests: socket.socket, results: socket.socket, limits: ParseLimits, owner: str) -> None:
        self.limits = limits
        self.owner = owner
        self.goes_on = False
        self._requests = requests
        self._results = results

    @classmethod
    def fork(cls, control: socket.socket, limits: ParseLimits, owner: str) -> "_Reader | None":
        """A new one, or None when the server has gone."""
        requests, their_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        results, their_results = socket.socketpair()
        reader = cls(requests, results, limits, owner)
        results.setblocking(False)
        with their_requests, their_results:
            try:
                descriptors = [their_requests.fileno(), their_results.fileno()]
                socket.send_fds(control, [orjson.dumps(asdict(limits))], descriptors)
            except (BrokenPipeError, ConnectionResetError):
                reader.close()
                return None
        return reader

    def is_alive(self) -> bool:
        """Whether it still waits for a file."""
        try:
            self._results.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """End it, whatever it does."""
        self._requests.close()
        self._results.close()

    def begin(self, file: BinaryIO, request: Request) -> bool:
        """Give it a file; False if it is dead."""
        self.goes_on = False
        file.seek(0)
        try:
            socket.send_fds(self._requests, [orjson.dumps(request)], [file.fileno()])
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    async def reply(self) -> bytes | None:
        """Its reply to what it was given, or None when the server has gone.

        Raises:
            LoadError: it was stopped by a limit or crashed.
        """
        try:
            async with asyncio.timeout(self.limits.wall_seconds + _GRACE_SECONDS):
                received = await self._receive()
        except TimeoutError:  # the fork has its own alarm; this is for a server that stands still
            return None
        reply = _verdict(received, self.limits)
        self.goes_on = reply is not None and bool(received[LENGTH_BYTES])
        return reply

    async def _receive(self) -> bytes:
        """Everything up to the end of the reply, or of the stream."""
        loop = asyncio.get_running_loop()
        received = bytearray()
        while len(received) < HEAD_BYTES or len(received) < _end(received):
            data = await loop.sock_recv(self._results, _READ_BYTES)
            if not data:
                break
            received += data
            if len(received) > self.limits.result_bytes + HEAD_BYTES + STATUS_BYTES:
                raise LoadError("invalid_file", "The file holds more text than one document may; split it.")
        return bytes(received)


def _end(received: bytes | bytearray) -> int:
    return HEAD_BYTES + int.from_bytes(received[:LENGTH_BYTES], "big")


def _verdict(received: bytes, limits: ParseLimits) -> bytes | None:
    """The reply of a fork that gave one whole, or None when the server has gone.

    Raises:
        LoadError: the fork was stopped by a limit or crashed.
    """
    if not received:
        return None
    if len(received) >= HEAD_BYTES and len(received) >= _end(received):
        return received[HEAD_BYTES : _end(received)]
    status = os.waitstatus_to_exitcode(int.from_bytes(received[-STATUS_BYTES:], "big"))
    if status in (-SIGALRM, -SIGXCPU):
        raise LoadError(
            "invalid_file", f"Reading the file takes more time than allowed ({limits.cpu_seconds} s); split it."
        )
    if status in (OUT_OF_MEMORY, -SIGKILL):  # the latter is the kernel's own answer to a machine out of memory
        megabytes = limits.memory_bytes // 1024**2
        raise LoadError("invalid_file", f"Reading the file needs more memory than allowed ({megabytes} MiB); split it.")
    raise LoadError("invalid_file", "The file is damaged or needs more memory than allowed: reading it broke off.")
