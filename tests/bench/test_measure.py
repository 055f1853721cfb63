"""The benchmark's figures are of the work it says, and agree with each other."""

import json

import pytest

from localr1.bench.measure import BenchReport, Spread, bench, real_text
from localr1.errors import UsageError
from localr1.options import BenchOptions, EngineOptions
from localr1.session import Engine, load
from tests.bench.results import result_of


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALR1_HOME", str(tmp_path_factory.mktemp("home")))
        return result_of(load("nano", EngineOptions(threads=1, dtype="int8")))


@pytest.fixture(scope="module")
def report(nano: Engine) -> BenchReport:
    return result_of(bench(nano, BenchOptions(prompt_tokens=40, decode_tokens=6, repeats=3)))


def test_bytes_are_the_stores_and_the_caches(nano: Engine, report: BenchReport) -> None:
    assert report.weight_bytes == nano.weight_bytes < 12_000_000
    assert 3.3 < 4 * report.parameters / report.weight_bytes < 4
    latent = nano.config.cache_width
    assert report.cache_bytes_per_token == 2 * latent * nano.config.num_layers
    assert report.peak_rss_bytes > report.weight_bytes


def test_there_is_a_figure_for_every_repeat(report: BenchReport) -> None:
    assert len(report.prefill_tokens_per_s.values) == len(report.decode_tokens_per_s.values) == 3
    assert min(report.decode_tokens_per_s.values) > 0
    assert (report.prompt_tokens, report.decode_tokens) == (40, 6)


def test_the_record_holds_the_machine_and_every_repeat(report: BenchReport) -> None:
    record = json.loads(report.to_json())
    assert record["machine"]["torch"] and record["machine"]["physical_cores"]
    assert len(record["decode_tokens_per_s"]["values"]) == 3
    assert {label for label, _ in report.rows()} >= {"weights", "cache", "peak memory"}


def test_a_context_too_short_for_it_is_refused(nano: Engine) -> None:
    with pytest.raises(UsageError, match="exceed the context of 2,048"):
        result_of(bench(nano, BenchOptions(prompt_tokens=2000, decode_tokens=100)))


def test_the_text_is_long_and_real() -> None:
    assert len(real_text()) > 300_000 and "expression" in real_text()


def test_a_spread_shows_its_middle_and_its_ends() -> None:
    assert str(Spread((3.0, 1.0, 10.0))) == "3.0  (1.0 to 10.0)"
