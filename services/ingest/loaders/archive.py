"""Opens ZIP-based documents: the container is judged by what it really unpacks to, before any of it is parsed."""

import zipfile
import zlib
from io import BytesIO
from typing import Final

from services.ingest.document import LoadError

MAX_ENTRIES: Final = 2_000
MAX_UNPACKED_BYTES: Final = 200 * 1024 * 1024
MAX_RATIO: Final = 100
_RATIO_FLOOR_BYTES: Final = 1024 * 1024  # small files of repeated XML reach high ratios and harm nobody
_PIECE_BYTES: Final = 256 * 1024


class Archive:
    """A ZIP container that passed its limits.

    Raises:
        LoadError: damaged, encrypted, or beyond the limits on entries, unpacked size or ratio.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
            self.names = frozenset(self._zip.namelist())
            self._check(len(data))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
            ValueError,
            OSError,
            zlib.error,
        ) as error:
            raise LoadError("invalid_file", "The file is damaged or encrypted: it cannot be unpacked.") from error

    def read(self, name: str) -> bytes | None:
        """The content of the entry `name`, or None where there is no such entry."""
        return self._zip.read(name) if name in self.names else None

    def _check(self, packed_bytes: int) -> None:
        """Streams every entry once, since the sizes in a ZIP's directory are only claims."""
        entries = self._zip.infolist()
        if len(entries) > MAX_ENTRIES:
            raise LoadError("invalid_file", f"The file holds more than {MAX_ENTRIES:,} parts; split it and try again.")
        limit = min(MAX_UNPACKED_BYTES, max(_RATIO_FLOOR_BYTES, packed_bytes * MAX_RATIO))
        unpacked_bytes = 0
        for entry in entries:
            with self._zip.open(entry) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    unpacked_bytes += len(piece)
                    if unpacked_bytes > limit:
                        raise LoadError(
                            "invalid_file", "The file unpacks to far more than a document of its size holds; split it."
                        )
