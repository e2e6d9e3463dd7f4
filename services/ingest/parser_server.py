"""The process that reads files: warm, without secrets, and forked for those who read them.

`services.ingest.readers` starts it with an empty environment and one end of a socket pair. Each message there is a
reader's limits, with two descriptors: a socket for its requests, and one for its results. The fork takes one request
after the other, a JSON object with the file's descriptor: `{"filename": ...}` asks for the document, `{"page": 3}` for
the text recognised on that page of a PDF. It reads within its limits and writes, after a head of nine bytes, the result
as JSON; the head is the JSON's length and whether the fork takes another request. When the fork ends, this process adds
its wait status in four bytes and closes. When the caller closes its end of the results first, the fork is killed; when
the caller's process ends, so does this one.

Run as: python -m services.ingest.parser_server <socket descriptor>
"""

import contextlib
import gc
import math
import os
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import orjson

from services.ingest.document import Block, LoadError
from services.ingest.loaders import load
from services.ingest.loaders.pdf import page_blocks
from services.ingest.recognition import recognised

MAX_REQUEST_BYTES: Final = 16 * 1024
LENGTH_BYTES: Final = 8
HEAD_BYTES: Final = LENGTH_BYTES + 1
STATUS_BYTES: Final = 4
OUT_OF_MEMORY: Final = 70  # exit status of a fork that ran out of its address space
_OPEN_FILES: Final = 16
# What a fork may read before another one takes its place: leaks must not add up.
FILES_PER_FORK: Final = 64


def serve(control: socket.socket) -> None:
    """Forks for each request on `control` until its other end is closed."""
    _warm_up()
    selector = selectors.DefaultSelector()
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    selector.register(control, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    forks: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is control:
                if not _accept(control, forks, selector):
                    _kill_all(forks)
                    return
            elif key.fileobj is woken:
                woken.recv(4096)
                _reap(forks, selector)
            elif key.data in forks:  # readable: the caller, who never writes, has closed its end
                os.kill(key.data, signal.SIGKILL)
                selector.unregister(key.fileobj)


def _warm_up() -> None:
    """Loads what the readers load on first use, here once rather than in every fork."""
    for sample in (
        b"%PDF-1.4",
        "Пример текста в старой кодировке.".encode("cp866"),
        b"From: a\nTo: b\nSubject: c\n\nd",
    ):
        with contextlib.suppress(LoadError):
            load(sample, "")
    gc.freeze()  # forks then share the pages of all that lives here


def _accept(control: socket.socket, forks: dict[int, socket.socket], selector: selectors.BaseSelector) -> bool:
    message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 2)
    if not message:
        return False
    request_descriptor, result_descriptor = descriptors
    result = socket.socket(fileno=result_descriptor)
    process_id = os.fork()
    if process_id == 0:
        selector.close()
        for inherited in (control, *forks.values()):  # else the others' callers would wait for this fork's end too
            inherited.close()
        _read_and_exit(message, socket.socket(fileno=request_descriptor), result)
    os.close(request_descriptor)
    forks[process_id] = result
    selector.register(result, selectors.EVENT_READ, process_id)
    return True


def _reap(forks: dict[int, socket.socket], selector: selectors.BaseSelector) -> None:
    """Tells the callers how their forks ended."""
    while forks:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if process_id == 0:
            return
        with forks.pop(process_id) as result:
            with contextlib.suppress(KeyError):
                selector.unregister(result)
            with contextlib.suppress(OSError):  # the caller has gone, or has a whole result still to read
                result.send(status.to_bytes(STATUS_BYTES, "big"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _kill_all(forks: dict[int, socket.socket]) -> None:
    for process_id in forks:
        os.kill(process_id, signal.SIGKILL)
        os.waitpid(process_id, 0)


def _read_and_exit(message: bytes, requests: socket.socket, result: socket.socket) -> None:
    """Reads files in the fork; never returns, so that nothing of the server runs twice."""
    status = 1
    try:
        limits = orjson.loads(message)
        _limit(limits)
        _read_files(limits, requests, result)
        status = 0
    except MemoryError:
        status = OUT_OF_MEMORY
    except Exception as error:  # noqa: BLE001 - the boundary of the process; the text of an error may quote the file
        place = traceback.extract_tb(error.__traceback__)[-1]
        sys.stderr.write(f"reading a file broke off: {type(error).__name__} at {place.filename}:{place.lineno}\n")
    finally:
        os._exit(status)


def _read_files(limits: dict[str, int], requests: socket.socket, result: socket.socket) -> None:
    most_kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + limits["growth_bytes"] // 1024
    for left in reversed(range(FILES_PER_FORK)):
        request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 1)
        if not descriptors:
            return
        _allow_one_more(limits)
        reply = _reply(descriptors[0], orjson.loads(request))
        goes_on = left > 0 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < most_kibibytes
        result.sendall(len(reply).to_bytes(LENGTH_BYTES, "big") + goes_on.to_bytes(1, "big") + reply)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not goes_on:
            return


def _allow_one_more(limits: dict[str, int]) -> None:
    """Time for one file: the kernel counts a process's processor time from its start."""
    signal.setitimer(signal.ITIMER_REAL, limits["wall_seconds"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = math.ceil(used.ru_utime + used.ru_stime) + limits["cpu_seconds"]
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    # At the soft limit the kernel sends SIGXCPU, at the hard one SIGKILL, which would say less.
    resource.setrlimit(resource.RLIMIT_CPU, (min(seconds, most - 1), most))


def _limit(allowed: dict[str, int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    limits = {
        resource.RLIMIT_AS: allowed["memory_bytes"],
        resource.RLIMIT_CPU: FILES_PER_FORK * (allowed["cpu_seconds"] + 1) + 1,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _reply(file_descriptor: int, request: dict[str, Any]) -> bytes:
    """What was asked for, or the error for the person who uploaded the file."""
    try:
        with os.fdopen(file_descriptor, "rb") as file:
            if "page" in request:
                blocks = page_blocks(request["page"], recognised(file, request["page"]))
                return orjson.dumps({"blocks": _fields(blocks)})
            document = load(file.read(), request["filename"])
    except LoadError as error:
        return orjson.dumps({"code": error.code, "message": error.message})
    except RecursionError:
        return orjson.dumps({"code": "invalid_file", "message": "The file is nested too deeply to be read."})
    return orjson.dumps(
        {
            "blocks": _fields(document.blocks),
            "page_count": document.page_count,
            "title": document.title,
            "media_type": document.media_type,
            "picture_pages": document.picture_pages,
        }
    )


def _fields(blocks: Iterable[Block]) -> list[tuple[object, ...]]:
    return [(block.text, block.kind, block.page, block.heading_path) for block in blocks]


if __name__ == "__main__":
    os.chdir(Path("/"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, which then closes its end
    serve(socket.socket(fileno=int(sys.argv[1])))
