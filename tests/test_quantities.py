import pytest

from localr1.errors import UsageError
from localr1.quantities import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8 gib", 8 << 30),
        ("8GB", 8 * 10**9),
        ("8000MB", 8 * 10**9),
        ("8000M", 8000 << 20),
        ("0", 0),
        ("0GiB", 0),
        ("1.5GiB", 3 << 29),
        ("1,5g", 3 << 29),
        (".5T", 1 << 39),
        ("1024B", 1024),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text, "--vram") == size


@pytest.mark.parametrize(
    "text", ["", "8", "8X", "-1G", "G", "eight", "8GiBB", "1e3G", "nan", "inf", "9999999T", "8 8G"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"--ram") as caught:
        parse_size(text, "--ram")
    assert "--ram" in caught.value.hint
