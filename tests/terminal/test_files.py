import codecs

import pytest

from localr1.errors import UnsupportedError
from localr1.terminal.files import read_attachment


@pytest.mark.parametrize(
    "data",
    [
        codecs.BOM_UTF16_LE + "é漢\r\n😀\r\n".encode("utf-16-le"),  # dir > list.txt in Windows' PowerShell
        codecs.BOM_UTF16_BE + "é漢\n😀".encode("utf-16-be"),
        codecs.BOM_UTF8 + "é漢\r\n😀\n".encode(),
        "é漢\r\n😀".encode(),
    ],
)
def test_a_file_is_read_as_it_says_it_is_with_plain_line_ends(tmp_path, data):
    path = tmp_path / "list.txt"
    path.write_bytes(data)
    read = read_attachment(path)
    assert (read.text, read.notes) == ("é漢\n😀", ())


def test_what_is_cut_off_within_a_character_loses_that_alone(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("a😀b".encode("utf-16"))
    read = read_attachment(path, largest_bytes=6)
    assert read.text == "a" and read.notes == ("only the first 6 of its 10 bytes are taken",)


def test_what_is_not_in_the_encoding_is_told_of(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(codecs.BOM_UTF16_LE + b"a\0\0\xd8b\0")
    read = read_attachment(path)
    assert read.text == "a\ufffdb" and read.notes == ("what is not UTF-16 in it became \ufffd",)


@pytest.mark.parametrize("data", [b"\x89PNG\0\0", codecs.BOM_UTF16_LE + b"\0\0a\0", "a".encode("utf-32")])
def test_a_nul_is_no_text(tmp_path, data):
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="not text"):
        read_attachment(path)
