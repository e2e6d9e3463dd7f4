"""Loaders on small files written here; real files are read in the integration tests."""

import io
import zipfile
from email.message import EmailMessage

import pytest

from services.ingest.document import Block, Document, LoadError
from services.ingest.loaders import archive, load

_W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def _zip(entries: dict[str, str]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    return target.getvalue()


def _shape(document: Document) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in document.blocks]


def test_html_gives_what_a_reader_sees() -> None:
    page = (
        "<title>Guide</title><nav>Menu</nav><h1>Guide</h1><p>One <b>bold</b>\n word.<script>no()</script></p>"
        "<h2>Part</h2><ul><li>first<li>second<ul><li>inner</ul></ul>"
        "<table><tr><th>A<th>B<tr><td>1<td>2</table><pre>x = 1\n  y</pre>"
    )
    document = load(page.encode(), "page.html")
    assert document.title == "Guide"
    assert _shape(document) == [
        ("heading", "Guide"),
        ("paragraph", "One bold word."),
        ("heading", "Part"),
        ("list", "- first\n- second\n  - inner"),
        ("table", "A | B\n1 | 2"),
        ("code", "x = 1\n  y"),
    ]
    assert document.blocks[-1].heading_path == ("Guide", "Part")


def test_markdown_keeps_headings_code_tables_and_lists_apart() -> None:
    text = "Title\n=====\nintro\n\n## Use\n- a\n- b\n\n"
    text += "```py\n# not a heading\n\nx\n```\n| a | b |\n|---|---|\n### Deep\nend"
    document = load(text.encode(), "a.md")
    assert document.blocks == (
        Block("Title", "heading"),
        Block("intro", heading_path=("Title",)),
        Block("Use", "heading", heading_path=("Title",)),
        Block("- a\n- b", "list", heading_path=("Title", "Use")),
        Block("# not a heading\n\nx", "code", heading_path=("Title", "Use")),
        Block("| a | b |\n|---|---|", "table", heading_path=("Title", "Use")),
        Block("Deep", "heading", heading_path=("Title", "Use")),
        Block("end", heading_path=("Title", "Use", "Deep")),
    )


def test_plain_text_has_paragraphs_and_no_controls() -> None:
    document = load(b"one\r\nline\r\n\r\n\r\ntwo\x00\x01", "a.txt")
    assert _shape(document) == [("paragraph", "one\nline"), ("paragraph", "two")]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_rows_name_their_columns(separator: str) -> None:
    rows = ["Team,Location,Cups", "Blues,STL,1", '"Maple, Leafs",TOR,', "Flyers,PHI,2"]
    data = "\n".join(row.replace(",", separator) for row in rows).encode()
    (block,) = load(data, "t.csv").blocks
    assert block.kind == "table"
    assert "Team: Blues; Location: STL; Cups: 1" in block.text
    assert "Location: TOR\n" in block.text


def test_json_values_carry_their_paths() -> None:
    document = load(b'{"a": {"b": [1, "two"]}, "c": null, "d": true}', "t.json")
    assert document.text == "a.b[0]: 1\na.b[1]: two\nd: true"


def test_json_lines_are_read_line_by_line() -> None:
    assert load(b'{"a": 1}\n{"a": 2}\n', "t.jsonl").text == "[0].a: 1\n[1].a: 2"


def test_xml_leaves_entities_alone() -> None:
    data = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    data += b"<x><n>Fr</n><p>a &e; <i>b</i></p></x>"
    assert load(data, "t.xml").text == "n: Fr\na &e; b"


def test_docx_reads_headings_lists_tables_and_skips_what_was_deleted() -> None:
    def paragraph(text: str, properties: str = "") -> str:
        return f"<w:p><w:pPr>{properties}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"

    number = '<w:numPr><w:ilvl w:val="1"/><w:numId w:val="1"/></w:numPr>'
    body = (
        paragraph("Top", '<w:pStyle w:val="H1"/>')
        + "<w:p><w:r><w:t>ab</w:t><w:delText>gone</w:delText><w:tab/><w:t>c</w:t></w:r></w:p>"
        + paragraph("item", number)
        + f"<w:tbl><w:tr><w:tc>{paragraph('1')}</w:tc><w:tc>{paragraph('2')}</w:tc></w:tr></w:tbl>"
    )
    styles = '<w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
    entries = {
        "[Content_Types].xml": "",
        "word/document.xml": f"<w:document {_W}><w:body>{body}</w:body></w:document>",
        "word/styles.xml": f"<w:styles {_W}>{styles}</w:styles>",
        "word/footnotes.xml": f"<w:footnotes {_W}>{paragraph('A note.')}</w:footnotes>",
    }
    document = load(_zip(entries), "a.docx")
    assert _shape(document) == [
        ("heading", "Top"),
        ("paragraph", "ab\tc"),
        ("list", "- item"),
        ("table", "1 | 2"),
        ("paragraph", "A note."),
    ]


def test_rtf_resolves_code_pages_and_unicode() -> None:
    data = rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fcharset238 A;}}{\*\x no}\f0 \'c8esk\'fd\par \u8364?5 {\b bold}}"
    assert load(data, "a.rtf").text == "Český\n\n€5 bold"


def test_mail_reads_headers_and_one_form_of_the_body() -> None:
    data = (
        b"From: Ann <a@example.com>\nTo: b@example.com\nSubject: Plan\nMIME-Version: 1.0\n"
        b"Content-Type: multipart/alternative; boundary=x\n\n--x\nContent-Type: text/plain\n\nHello.\n"
        b"--x\nContent-Type: text/html\n\n<p>Hello.</p>\n--x--\n"
    )
    document = load(data, "mail")
    assert document.title == "Plan"
    assert document.text == "From: Ann <a@example.com>\nTo: b@example.com\nSubject: Plan\n\nHello."


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b" \n\t ", "a.txt", "no text"),
        (b"{'a': 1}", "a.json", "not valid JSON"),
        (b"[" * 100_000, "a.json", "nested"),
        (b"<?xml version='1.0'?><a>", "a.xml", "damaged"),
        (b"%PDF-1.4 and no more", "a.pdf", "damaged"),
        (_zip({"[Content_Types].xml": "", "word/other.xml": ""}), "a.docx", "main part"),
        (_zip({"[Content_Types].xml": "", "word/document.xml": "<broken"}), "a.docx", "damaged"),
    ],
)
def test_broken_files_say_what_is_wrong(data: bytes, name: str, says: str) -> None:
    with pytest.raises(LoadError, match=says) as caught:
        load(data, name)
    assert caught.value.code == "invalid_file"


def _pdf(*pages: str, width: int = 600, height: int = 800) -> bytes:
    """A PDF whose pages run these operators; /P draws a picture in the unit square, /F is a font."""
    picture = "/Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8"
    shared = "/Resources << /XObject << /P 3 0 R >> /Font << /F 4 0 R >> >>"
    numbers = [5 + 2 * index for index in range(len(pages))]
    objects = {
        1: "<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{number} 0 R' for number in numbers)}] >>",
        3: f"<< {picture} /Length 1 >> stream\n0\nendstream",
        4: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    for number, operators in zip(numbers, pages, strict=True):
        box = f"/MediaBox [0 0 {width} {height}]"
        objects[number] = f"<< /Type /Page /Parent 2 0 R {box} {shared} /Contents {number + 1} 0 R >>"
        objects[number + 1] = f"<< /Length {len(operators)} >> stream\n{operators}\nendstream"
    body = "\n".join(f"{number} 0 obj {content} endobj" for number, content in objects.items())
    return f"%PDF-1.4\n{body}\ntrailer << /Root 1 0 R /Size {len(objects) + 1} >>\n%%EOF".encode()


def test_attachments_of_a_mail_are_read_under_their_names() -> None:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "a@example.org", "b@example.org", "The plans"
    mail.set_content("See what is attached.")
    inner = mail.as_bytes()
    page = "BT /F 12 Tf 20 700 Td (The new pier is 90 m long.) Tj ET"
    files = (
        (_pdf("", page), "pdf", "pier.pdf"),
        (b'{"cranes": 4}', "json", "harbour.json"),
        (b"\x7fELF\x01", "octet-stream", "tool"),
        (inner, "octet-stream", "inner.eml"),
    )
    for content, subtype, name in files:
        mail.add_attachment(content, maintype="application", subtype=subtype, filename=name)
    document = load(mail.as_bytes(), "plans.eml")
    assert [(block.text, block.page, block.heading_path) for block in document.blocks[2:]] == [
        ("Attachment: pier.pdf", None, ()),
        ("The new pier is 90 m long.", None, ("Attachment: pier.pdf",)),
        ("Attachment: harbour.json", None, ()),
        ("cranes: 4", None, ("Attachment: harbour.json",)),
        ("Attachment: tool", None, ()),
        ("Attachment: inner.eml", None, ()),
    ]
    assert (document.title, document.blocks[1].text) == ("The plans", "See what is attached.")


def test_pages_of_a_pdf_that_are_pictures_are_named() -> None:
    scan = "q 600 0 0 800 0 0 cm /P Do Q"
    halves = "q 600 0 0 400 0 0 cm /P Do Q q 600 0 0 300 0 400 cm /P Do Q"
    logo = "q 60 0 0 80 0 0 cm /P Do Q"
    stamp = "BT /F 12 Tf 20 20 Td (Received) Tj ET"
    text = "BT /F 12 Tf 20 20 Td (" + "A page of text with a picture behind it. " * 4 + ") Tj ET"
    document = load(_pdf(scan, halves + stamp, logo + stamp, scan + text, "", logo), "scan.pdf")
    assert document.picture_pages == (1, 2, 6)
    assert [(block.text[:8], block.page) for block in document.blocks] == [
        ("Received", 2),
        ("Received", 3),
        ("A page o", 4),
    ]


def test_an_empty_pdf_holds_no_text() -> None:
    with pytest.raises(LoadError, match="no text") as caught:
        load(_pdf(""), "empty.pdf")
    assert caught.value.code == "invalid_file"


def test_recognised_pages_take_their_place_among_the_others() -> None:
    pages = [Block("one", page=1), Block("stamp", page=2), Block("three", page=3), Block("stays", page=4)]
    document = Document.of(pages, media_type="application/pdf", title="T", page_count=4, picture_pages=(2, 4))
    read = document.with_pages({2: [Block("two", page=2), Block("and more", page=2)], 4: []})
    assert read.text == "one\n\ntwo\n\nand more\n\nthree\n\nstays"
    assert (read.title, read.page_count, read.offsets[3]) == ("T", 4, read.text.index("three"))


def test_zip_bombs_are_stopped_by_ratio_size_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="unpacks"):
        archive.Archive(_zip({"word/document.xml": "0" * 3_000_000}))
    with pytest.raises(LoadError, match="parts"):
        archive.Archive(_zip({str(number): "" for number in range(archive.MAX_ENTRIES + 1)}))
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1_000)
    with pytest.raises(LoadError, match="unpacks"):
        archive.Archive(_zip({"a": "0123456789" * 101}))
