"""Written-out arithmetic: each function returns the lines of a trace and the result the last line reaches.

Every line can be derived from the operands and the line before it by copying digits and by one table look-up, which is
what a very small transformer can do reliably. Nothing here knows about questions, phrasing or tokens.
"""


def compare_trace(a: str, b: str) -> tuple[str, int]:
    """Compares two numbers written as digits (optionally with decimals of equal length): (line, sign of a - b)."""
    whole_a, whole_b = a.split(".")[0], b.split(".")[0]
    if len(whole_a) != len(whole_b):
        sign = 1 if len(whole_a) > len(whole_b) else -1
        return f"{len(whole_a)}{'>' if sign > 0 else '<'}{len(whole_b)} digits", sign
    steps = []
    for x, y in zip(a.replace(".", ""), b.replace(".", ""), strict=True):
        steps.append(f"{x}{'=' if x == y else '>' if x > y else '<'}{y}")
        if x != y:
            return ", ".join(steps), 1 if x > y else -1
    return ", ".join(steps), 0


def checked(a: str, asked: str, b: str) -> tuple[str, str]:
    """Is `a asked b` true, asked being < or >: the line that finds out, and "y", "n" or, for equal numbers, "="."""
    line, sign = compare_trace(a, b)
    verdict = "=" if sign == 0 else "y" if (sign > 0) == (asked == ">") else "n"
    return f"{a}{asked}{b}? {line}: {verdict}", verdict


def _digits(a: int, b: int) -> list[tuple[int, int]]:
    """Digit pairs from the right, the shorter number padded with zeros."""
    width = max(len(str(a)), len(str(b)))
    return [(int(x), int(y)) for x, y in zip(str(a).zfill(width)[::-1], str(b).zfill(width)[::-1], strict=True)]


def add_trace(a: int, b: int) -> tuple[list[str], int]:
    """a + b for non-negative numbers, column by column, with the running result on each line."""
    lines, carry, out = [], 0, ""
    pairs = _digits(a, b)
    for column, (x, y) in enumerate(pairs):
        total = x + y + carry
        left = f"{x}+{y}{'+1' if carry else ''}={total}"
        if column == len(pairs) - 1:
            out = f"{total}{out}"
            lines.append(f"{left}: {out}")
        else:
            carry = total // 10
            out = f"{total % 10}{out}"
            lines.append(f"{left}{', carry 1' if carry else ''}: {out}")
    return lines, a + b


def _subtract_smaller(a: int, b: int) -> tuple[list[str], int]:
    """a - b for a >= b >= 0."""
    lines, borrow, out = [], 0, ""
    for x, y in _digits(a, b):
        digit = x - y - borrow
        left = f"{x}-{y}{'-1' if borrow else ''}{'+10' if digit < 0 else ''}"
        borrow = 1 if digit < 0 else 0
        digit %= 10
        out = f"{digit}{out}"
        lines.append(f"{left}={digit}{', borrow 1' if borrow else ''}: {out}")
    if out != str(int(out)):
        lines.append(f"= {int(out)}")
    return lines, a - b


def subtract_trace(a: int, b: int) -> tuple[list[str], int]:
    """a - b for non-negative numbers; a negative result is worked out as -(b - a)."""
    line, sign = compare_trace(str(a), str(b))
    if sign >= 0:
        lines, result = _subtract_smaller(a, b)
        return [line, *lines], result
    lines, result = _subtract_smaller(b, a)
    return [f"{line}, so -({b}-{a})", *lines, f"= {-result}"], -result


def signed_trace(a: int, op: str, b: int) -> tuple[list[str], int]:
    """a + b or a - b or a * b where a may be negative and b is not."""
    if a >= 0:
        return {"+": add_trace, "-": subtract_trace, "*": multiply_trace}[op](a, b)
    if op == "*":
        lines, result = multiply_trace(-a, b)
        return [f"-({-a}*{b})", *lines, f"= {-result}"], -result
    if op == "-":
        lines, result = add_trace(-a, b)
        return [f"-({-a}+{b})", *lines, f"= {-result}"], -result
    lines, result = subtract_trace(b, -a)
    return [f"{b}-{-a}", *lines], result


def _times_digit(a: int, digit: int) -> list[str]:
    lines, carry, out = [], 0, ""
    digits = [int(x) for x in str(a)[::-1]]
    for column, x in enumerate(digits):
        total = x * digit + carry
        left = f"{x}*{digit}+{carry}={x * digit}+{carry}={total}" if carry else f"{x}*{digit}={total}"
        if column == len(digits) - 1:
            lines.append(f"{left}: {total}{out}")
        else:
            carry = total // 10
            out = f"{total % 10}{out}"
            lines.append(f"{left}{f', carry {carry}' if carry else ''}: {out}")
    return lines


def multiply_trace(a: int, b: int) -> tuple[list[str], int]:
    """a * b for non-negative numbers: one partial product for each digit of the shorter factor, then their sum."""
    if a == 0 or b == 0:
        return [f"{a}*{b}=0"], 0
    asked = f"{a}*{b}"
    if len(str(b).rstrip("0")) > len(str(a).rstrip("0")):
        a, b = b, a
    lines, running = [], 0
    for place, digit in enumerate(int(x) for x in str(b)[::-1]):
        if digit == 0:
            continue
        partial = a * digit
        if digit > 1 or place == 0:
            lines += [f"{a}*{digit}"] * (f"{a}*{digit}" != asked) + _times_digit(a, digit)
        if place:
            partial *= 10**place
            lines.append(f"{a}*{digit}{'0' * place}={partial}")
        if running:
            lines += [f"{running}+{partial}", *add_trace(running, partial)[0]]
        running += partial
    return lines, running


def insertion_trace(numbers: list[int], down: bool) -> tuple[list[str], list[int]]:
    """Insertion sort: each number is held against the sorted ones until its place is found; then the list follows."""
    asked = ">" if down else "<"
    ordered, lines = [numbers[0]], [f"order {asked}", str(numbers[0])]
    for number in numbers[1:]:
        place = len(ordered)
        for i, other in enumerate(ordered):
            line, verdict = checked(str(number), asked, str(other))
            lines.append(line)
            if verdict == "y":
                place = i
                break
        ordered.insert(place, number)
        lines.append(" ".join(map(str, ordered)))
    return lines, ordered


def extreme_trace(numbers: list[int], asked: str) -> tuple[list[str], int]:
    """The largest (asked is >) or smallest (<) number: each one in turn is held against the best so far."""
    best, lines = numbers[0], [str(numbers[0])]
    for number in numbers[1:]:
        line, verdict = checked(str(number), asked, str(best))
        best = number if verdict == "y" else best
        lines.append(f"{line} {best}")
    return lines, best


def _taken_from(current: int, product: int) -> str:
    """current - product, which leaves less than 100, from the right: the units (borrowing a ten), then the rest."""
    borrow = current % 10 < product % 10
    units, rest = (current - product) % 10, (current - product) // 10
    left = f"{current % 10}-{product % 10}{'+10' if borrow else ''}={units}"
    left += f", {current // 10}-{product // 10}{'-1' if borrow else ''}={rest}"
    return f"{current}-{product}: {left}: {current - product}"


def _division_step(current: int, b: int) -> tuple[list[str], int]:
    """One digit of a long division: the lines up to the remainder, and the quotient's digit.

    By one digit that is a look-up. By more, a digit that may be one too large is tried first: the largest that fits if
    the last digit of `current` were 9.
    """
    digit = current // b
    if b < 10:
        used = digit * b
        return [f"{digit}*{b}={used}, {current}-{used}={current - used}" if digit else f"{current}<{b}"], digit
    lines, tried = [], min(9, (current // 10 * 10 + 9) // b)
    while tried:
        product = tried * b
        tens, units = tried * (b // 10) * 10, tried * (b % 10)
        lines.append(f"{tried}*{b}={tens}+{units}={product}")
        line, verdict = checked(str(product), ">", str(current))
        lines.append(line)
        if verdict != "y":
            return [*lines, _taken_from(current, product)], tried
        lines[-1] += f", {tried}-1={tried - 1}"
        tried -= 1
    return [*lines, f"{current}<{b}"], 0


def divide_trace(a: int, b: int) -> tuple[list[str], tuple[int, int]]:
    """a divided by b > 0, digit by digit from the left: the result is (quotient, remainder).

    Each step names the number to divide and, after a bar, the digits that have not been used yet.
    """
    if a < b:
        return [f"{a}<{b}", f"= 0 remainder {a}"], (0, a)
    lines, remainder, quotient, digits = [], 0, "", str(a)
    for place, digit in enumerate(digits, 1):
        current = remainder * 10 + int(digit)
        if place < len(str(b)):
            remainder = current
            continue
        steps, step = _division_step(current, b)
        quotient += str(step) if step or quotient else ""
        remainder = current % b
        steps[0] = f"{current}{'|' + digits[place:] if place < len(digits) else ''}: {steps[0]}"
        lines += [*steps[:-1], steps[-1] + (f": {quotient}" if quotient else "")]
    return [*lines, f"= {quotient} remainder {remainder}"], (int(quotient), remainder)
