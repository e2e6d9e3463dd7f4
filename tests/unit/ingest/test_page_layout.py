"""Lines found on a page, put in the order in which a person reads them."""

from services.ingest.page_layout import Line, in_reading_order


def _line(text: str, left: float, top: float, width: float | None = None) -> Line:
    return Line(left, top, left + (width or 8.0 * len(text)), top + 20, text)


def _column(name: str, left: float, top: float = 100) -> list[Line]:
    return [_line(f"{name} column, running line {number}", left, top + 25 * number, 300) for number in range(5)]


def test_nothing_is_read_on_an_empty_page() -> None:
    assert in_reading_order([]) == ""


def test_lines_are_read_downwards_and_gaps_part_paragraphs() -> None:
    lines = [_line("third", 50, 190), _line("first", 50, 100), _line("second", 52, 124)]
    assert in_reading_order(lines) == "first\nsecond\n\nthird"


def test_columns_of_running_text_are_read_one_after_the_other() -> None:
    left, right = _column("left", 50), _column("right", 400)
    mixed = [line for pair in zip(left, right, strict=True) for line in pair]
    read = in_reading_order([*mixed, _line("A heading across the whole page, as wide as both of them", 50, 40, 650)])
    expected = [f"{name} column, running line {number}" for name in ("left", "right") for number in range(5)]
    assert read.split("\n\n")[0].startswith("A heading")
    assert "\n".join(read.split("\n\n")[1:]).split("\n") == expected


def test_rows_of_a_table_stay_together() -> None:
    cells = [
        _line(text, 50 + 300 * column, 100 + 25 * row + column)
        for row in range(5)
        for column, text in enumerate((f"name {row}", f"value {row}"))
    ]
    assert in_reading_order(cells[::-1]) == "\n".join(f"name {row} value {row}" for row in range(5))
