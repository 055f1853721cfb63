"""What is compared of two runs, on a processor and on a GPU."""

from benchmarks.repeatability import figures
from localr1.bench.report import Figure, Report, Row, Section


def table(key: str, columns: int) -> Section:
    cells = tuple(Figure((float(at),), "x") for at in range(1, columns))
    return Section(key, key, tuple(f"{key} {at}" for at in range(columns)), (Row("0", cells),), ())


def test_a_run_without_a_floor_is_told_by_its_speeds() -> None:
    speed, floor = table("speed", 4), table("floor", 7)
    on_cpu, on_gpu = (Report("m", False, {}, sections, {}) for sections in ((speed, floor), (speed,)))
    speeds = {"speed 1 at 0", "speed 3 at 0"}
    assert set(figures(on_gpu)) == speeds and set(figures(on_cpu)) == speeds | {"floor 3 at 0", "floor 6 at 0"}
