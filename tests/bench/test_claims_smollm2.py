"""The four claims on a real model from the package index: numbers that must hold on any machine, whatever its speed."""

from pathlib import Path

import pytest

from localr1 import session
from localr1.bench import measure, subject
from localr1.bench.report import Report
from localr1.events import result_of
from localr1.options import BenchOptions, DownloadOptions, EngineOptions

pytestmark = pytest.mark.smollm2
OPTIONS = BenchOptions(prompt_tokens=48, decode_tokens=4, repeats=1, depths="0", claims=True)


@pytest.fixture(scope="module")
def report(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALR1_HOME", str(tmp_path_factory.mktemp("home")))
        result_of(session.download(DownloadOptions(str(smollm2_folder))))
        opened = result_of(subject.open_model(str(smollm2_folder), EngineOptions(threads=1)))
        return result_of(measure.bench(opened, OPTIONS))


def test_eight_bits_against_the_float32_source(report: Report) -> None:
    rows = report.section("claim bits").rows
    cells = {(row.label, str(row.cells[-1])): row.cells for row in rows}
    assert cells["weights", "the same parameters in float32"][2].median > 3.9
    kl = cells["mean KL", "the float32 source"][0].median
    kernels = cells["mean KL", "the same int8 numbers as float32: what the kernels add"][0].median
    assert 0 <= kernels < 1e-3 < kl < 0.03
    assert cells["same likeliest token", "the float32 source"][0].median > 80
    ours, source, *_ = cells["perplexity", "the float32 source"]
    assert ours.median == pytest.approx(source.median, rel=0.05) and 1 < source.median < 1000


def test_what_the_model_lacks_is_said(report: Report) -> None:
    cache = report.section("claim cache")
    assert cache.rows[0].cells[2].median == 3 and "no latent to compare" in cache.notes[0]
    assert report.section("claim experts").notes == ("this model has no experts",)


def test_guessing_changes_no_token(report: Report) -> None:
    guessing = report.section("claim guessing")
    assert {row.cells[-1] for row in guessing.rows[:4]} == {f"the same {4 * 4 * OPTIONS.decode_tokens}"}
    assert "n-grams" in guessing.notes[0]
