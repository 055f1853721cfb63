"""How amounts are written for people, short, with a unit, the same everywhere; and how amounts of memory are read.

What people write of memory counts in 1024s with `GiB`, `MiB` and the bare letters `G`, `M`, as graphics cards are sold,
and in 1000s with `GB` and `MB`.
"""

import math
import re

from localr1.errors import UsageError

_SIZE = re.compile(r"(\d+(?:[.,]\d+)?|[.,]\d+)\s*([kmgt]?)(i?b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MOST_BYTES = 1 << 50
_UNITS = ("B", "kB", "MB", "GB", "TB")


def bytes_text(count: int) -> str:
    """Decimal units, as disks and downloads are sold: 1500 is "1.5 kB", 134_515_008 is "134.5 MB"."""
    value, unit = float(count), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """3.2 s, 47 s, 2 min 5 s, 1 h 12 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rate_text(tokens_per_s: float) -> str:
    """12.3 tokens/s; whole numbers from 100 up."""
    return f"{tokens_per_s:,.0f} tokens/s" if tokens_per_s >= 99.95 else f"{tokens_per_s:.1f} tokens/s"


def percent_text(share: float, digits: int = 0) -> str:
    """54 %, 13.8 %."""
    return f"{100 * share:.{digits}f} %"


def count_text(count: int, one: str) -> str:
    """1 token, 2 tokens, 1,234 tokens."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def context_text(tokens: int, limit_tokens: int) -> str:
    """context 512/4,096"""
    return f"context {tokens:,}/{limit_tokens:,}"


def thought_line(tokens: int, duration_s: float) -> str:
    """thought for 12 s, 431 tokens"""
    return f"thought for {seconds_text(duration_s)}, {count_text(tokens, 'token')}"


def parse_size(text: str, option: str) -> int:
    """Bytes. Raises UsageError naming the option where the text is no size, or has no unit though it is not 0.

    >>> parse_size("8GiB", "--vram"), parse_size("1.5g", "--vram"), parse_size("8000MB", "--ram"), parse_size("0", "")
    (8589934592, 1610612736, 8000000000, 0)
    """
    hint = f"for example {option} 8GiB, {option} 7500MB or {option} 0"
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text!r} is not an amount of memory", hint)
    number, prefix, rest = float(match[1].replace(",", ".")), match[2].lower(), match[3].lower()
    if not prefix and number and rest != "b":
        raise UsageError(f"{option} {text!r} has no unit", f"did you mean {option} {text.strip()}GiB?")
    base = 1000 if rest == "b" else 1024
    size = math.floor(number * float(base) ** _POWERS[prefix])
    if size > _MOST_BYTES:
        raise UsageError(f"{option} {text!r} is more memory than there is", hint)
    return size
