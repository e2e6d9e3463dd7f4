"""The text in pictures of pages: found and read by the models in the package `rapidocr`, the extra `ocr`.

Runs in the processes that read files. The package is loaded with the first page, so nobody else pays for it.
"""

from collections.abc import Iterable
from contextlib import closing
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import pypdfium2 as pdfium  # type: ignore[import-untyped] # ships no type information

from services.ingest.page_layout import Line, in_reading_order

if TYPE_CHECKING:
    from rapidocr import RapidOCR

_DOTS_PER_POINT: Final = 200 / 72
_LONGEST_SIDE_DOTS: Final = 2_000.0
_ENGINE: Final[dict[str, Any]] = {
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    # Lines one by one: together they are padded to the longest, which takes more memory and more time.
    "Rec.rec_batch_num": 1,
    # Lines are found in a smaller picture than they are read in.
    "Det.limit_type": "max",
    "Det.limit_side_len": 1280,
    # Whole pages are upright or not, which is not for a look at single lines to say.
    "Global.use_cls": False,
    "Global.log_level": "error",
}


def is_available() -> bool:
    """Whether the extra `ocr` is installed."""
    return find_spec("rapidocr") is not None


def recognised(file: BinaryIO, number: int) -> str:
    """The lines on a page of a PDF in reading order, with a blank line between paragraphs.

    Args:
        file: the PDF.
        number: the page's, from 1.
    """
    with closing(pdfium.PdfDocument(file)) as pdf, closing(pdf[number - 1]) as page:
        scale = min(_DOTS_PER_POINT, _LONGEST_SIDE_DOTS / max(page.get_size()))
        picture = page.render(scale=scale).to_numpy()
    # Its declared type is that of every step it can be asked for; asked for nothing else, it does all of them.
    found: Any = _engine()(picture[:, :, :3])
    if found.boxes is None:
        return ""
    return in_reading_order([_line(box, text) for box, text in zip(found.boxes, found.txts, strict=True)])


@cache
def _engine() -> "RapidOCR":
    from rapidocr import RapidOCR  # noqa: PLC0415 - optional, and a second to load

    return RapidOCR(params=_ENGINE)


def _line(corners: Iterable[tuple[float, float]], text: str) -> Line:
    across, down = zip(*corners, strict=True)
    return Line(float(min(across)), float(min(down)), float(max(across)), float(max(down)), text)
