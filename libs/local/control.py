"""Talking to a running supervisor: one line of JSON there, one back, over a Unix socket in its `run` directory.

The directory is open to its owner alone, which is all the authentication there is and needs to be.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# A stop may take a worker's whole grace.
_TIMEOUT_SECONDS: Final = 60.0
# The system's limit for a socket's path is 108 bytes on Linux, 104 on macOS.
_LONGEST_PATH_BYTES: Final = 103


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """What `status` tells of a program; uptime is that of its process, 0 when there is none."""

    name: str
    state: str
    pid: int | None
    uptime_seconds: float
    url: str


@dataclass(frozen=True, slots=True)
class StackStatus:
    """What `status` tells of the stack."""

    state: str
    pid: int
    programs: tuple[ProgramStatus, ...]


class NotRunningError(Exception):
    """No supervisor has this state directory."""


class Refused(Exception):  # noqa: N818 - what the supervisor says, not what went wrong in it
    """The supervisor understood and will not; the message says why."""


@asynccontextmanager
async def serving(run_dir: Path, obey: Callable[[str, str | None], Awaitable[dict[str, Any]]]) -> AsyncGenerator[None]:
    """Answer requests for as long as the block lasts.

    Args:
        obey: gets the verb and the program's name; its result goes back, as does the message of a `Refused`.

    Raises:
        ValueError: the directory's path is too long to hold a socket.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            request = json.loads(await reader.readline())
            reply: dict[str, Any]
            try:
                reply = {"result": await obey(request["verb"], request.get("name"))}
            except Refused as refusal:
                reply = {"refused": str(refusal)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    path = _socket_path(run_dir)
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def request(run_dir: Path, verb: str, name: str | None = None) -> dict[str, Any]:
    """Ask the supervisor for its result.

    Raises:
        NotRunningError: there is none, or it ended before it answered.
        Refused: it will not.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_SECONDS)
        try:
            connection.connect(str(_socket_path(run_dir)))
            connection.sendall(json.dumps({"verb": verb, "name": name}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                line = lines.readline()
        except (FileNotFoundError, ConnectionError):
            line = b""
    if not line:
        raise NotRunningError("The stack is not running.")
    reply: dict[str, Any] = json.loads(line)
    if "refused" in reply:
        raise Refused(reply["refused"])
    result: dict[str, Any] = reply["result"]
    return result


def _socket_path(run_dir: Path) -> Path:
    path = run_dir / "control.sock"
    if len(bytes(path)) > _LONGEST_PATH_BYTES:
        raise ValueError("The state directory's path is too long to hold a Unix socket; choose a shorter one.")
    return path
