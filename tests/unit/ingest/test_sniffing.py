"""Kinds of files by content, and charsets."""

import hashlib
import io
import zipfile

import pytest

from services.ingest.document import LoadError
from services.ingest.sniffing import FileKind, decode, sniff


def _zip(**entries: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (b"%PDF-1.7\n", "report.docx", "pdf"),
        (b"{\\rtf1 hello}", "x.txt", "rtf"),
        (b"<!DOCTYPE html><p>hi", "x.txt", "html"),
        (b"<div>no doctype</div>", "", "html"),
        (b'<?xml version="1.0"?><a/>', "x.txt", "xml"),
        (b'<?xml version="1.0"?><html xmlns="x"/>', "x", "html"),
        (b'{"a": 1}', "", "json"),
        (b"{curly prose}", "", "text"),
        (b"From: a@b\nTo: c@d\nSubject: hi\n\nbody", "mail", "eml"),
        (b"Dear all:\nSubject: hi\n\nbody", "letter.txt", "text"),
        (b"a,b\n1,2", "t.csv", "csv"),
        (b"# Title", "t.md", "markdown"),
        (b"# Title", "..\\up\\t.txt", "text"),
        (b"import os", "t.py", "code"),
        (b"GIF8 is how an image file starts.", "t.txt", "text"),
        (_zip(**{"[Content_Types].xml": "", "word/document.xml": ""}), "x.pdf", "docx"),
        (_zip(**{"[Content_Types].xml": "", "ppt/presentation.xml": ""}), "", "pptx"),
        (_zip(**{"[Content_Types].xml": "", "xl/workbook.xml": ""}), "", "xlsx"),
        (_zip(mimetype="application/epub+zip"), "", "epub"),
        (_zip(mimetype="application/vnd.oasis.opendocument.text"), "", "odt"),
    ],
)
def test_content_decides_and_the_name_only_between_texts(data: bytes, name: str, kind: FileKind) -> None:
    assert sniff(data, name) == kind


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", "invalid_file", "empty"),
        (b"MZ\x90\x00\x03\x00\x00\x00", "unsupported_file", "program"),
        (b"\x7fELF\x02\x01\x01\x00", "unsupported_file", "program"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "unsupported_file", "image"),
        (bytes(range(1, 9)) * 100, "unsupported_file", "binary"),
        (hashlib.shake_128(b"short").digest(300), "unsupported_file", "binary"),
        (hashlib.shake_128(b"long").digest(300_000), "unsupported_file", "binary"),
        (_zip(readme="x"), "unsupported_file", "ZIP"),
        (b"PK\x03\x04 and then nothing", "invalid_file", "damaged"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "unsupported_file", "old Office"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"),
            "invalid_file",
            "password",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(data: bytes, code: str, says: str) -> None:
    with pytest.raises(LoadError, match=says) as caught:
        sniff(data, "letter.txt")
    assert caught.value.code == code


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_latin_text_survives_its_charset(encoding: str) -> None:
    text = "Übersicht über die Größe der Straßen in München, Köln und Düsseldorf."
    assert decode(text.encode(encoding)).lstrip("\ufeff") == text


@pytest.mark.parametrize("encoding", ["cp866", "koi8-r", "cp1251"])
def test_cyrillic_text_survives_its_charset(encoding: str) -> None:
    text = "Однажды, в студеную зимнюю пору, я из лесу вышел; был сильный мороз. "
    text += "Лошадку ведет под уздцы мужичок в больших сапогах, в полушубке овчинном."
    assert decode(text.encode(encoding)) == text


def test_a_declared_charset_is_followed() -> None:
    page = '<meta charset="iso-8859-2"><p>Część świata</p>'
    assert decode(page.encode("iso-8859-2")) == page


@pytest.mark.parametrize("charset", ["no-such-charset", "zlib", "utf-16"])
def test_a_charset_that_cannot_be_is_not_believed(charset: str) -> None:
    page = f'<meta charset="{charset}"><p>Größe und Übermaß der schönen Straßen</p>'
    assert decode(page.encode("cp1252")) == page


def test_broken_bytes_do_not_lose_the_rest() -> None:
    assert "good text" in decode(b"good text \xff\xfe\xfa more")
