"""Amounts of memory as people write them: 8GiB, 8G, 8000MB, 0.

Owns the reading only. `GiB`, `MiB` and the bare letters `G`, `M` count in 1024s, as graphics cards are sold; `GB` and
`MB` in 1000s.
"""

import math
import re

from localr1.errors import UsageError

_SIZE = re.compile(r"(\d+(?:[.,]\d+)?|[.,]\d+)\s*([kmgt]?)(i?b?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MOST_BYTES = 1 << 50


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
