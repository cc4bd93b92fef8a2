"""The benchmark's numbers mean what they say; no test looks at a time."""

import itertools
import math
import statistics
import sys
from dataclasses import replace

import pytest
import torch
from paths import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def run(monkeypatch, *arguments):
    import cost

    monkeypatch.setattr(sys, "argv", ["cost.py", *map(str, arguments)])
    cost.main()


def row(method="CDAM", **changes):
    from cost_rows import Row

    return replace(Row("ViT-S/16", 4, 50, method, 1.234, 1.2, 1.3, 1.5, 0.25, 9), **changes)


def test_the_spread_is_median_and_quartiles():
    from measuring import spread

    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == (3, 2, 4)
    assert spread([1.0, 2.0]) == (1.5, 1.25, 1.75)
    assert spread([7.0]) == (7, 7, 7)


def test_a_ratio_is_to_the_mean_of_the_plain_passes_around_the_call():
    from measuring import Timing

    assert Timing(seconds=6, before=1, after=3).ratio == 3


def test_rounds_pair_each_call_with_the_plain_passes_next_to_it(monkeypatch):
    import measuring

    lasts = {"plain": itertools.count(1), "quick": itertools.repeat(4), "slow": itertools.repeat(10_000)}
    called = []

    def seconds(name, _):
        called.append(name)
        return next(lasts[name])

    monkeypatch.setattr(measuring, "seconds", seconds)
    timings = dict(measuring.rounds("plain", {"quick": "quick", "slow": "slow"}, 6, "cpu"))
    assert [len(timings["quick"]), len(timings["slow"])] == [6, measuring.SLOW_REPEATS]
    assert called.count("plain") == 6 + 6 + measuring.SLOW_REPEATS
    assert all(one.after == one.before + 1 for one in timings["quick"] + timings["slow"])
    assert all("plain" in pair for pair in itertools.pairwise(called))
    assert called[1:4:2] != called[6:9:2] or called[1:4:2] != called[11:14:2]  # the order changes


def ten_then_twenty():
    first = torch.ones(10_000_000, dtype=torch.uint8)
    del first
    second = torch.ones(20_000_000, dtype=torch.uint8)
    del second


def both_at_once():
    first = torch.ones(10_000_000, dtype=torch.uint8)
    return first, torch.ones(20_000_000, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "peak"), [(ten_then_twenty, 20_000_000), (both_at_once, 30_000_000)])
def test_peak_memory_is_that_of_what_lives_together(call, peak):
    from measuring import peak_memory

    assert peak_memory(call, "cpu", times=2) == pytest.approx(peak, rel=1e-3)


@pytest.mark.slow
def test_peak_memory_ignores_what_an_earlier_measured_call_left_behind():
    """A running sum of the profiler's events would say 0 for the second call."""
    from measuring import peak_memory

    left = []

    def leave():
        left.append(torch.ones(40_000_000, dtype=torch.uint8))

    def clear_and_work():
        left.clear()
        ten_then_twenty()

    assert peak_memory(leave, "cpu") == pytest.approx(40_000_000, rel=1e-3)
    assert peak_memory(clear_and_work, "cpu") == pytest.approx(20_000_000, rel=1e-3)


def test_rows_survive_the_file(tmp_path):
    from cost_rows import read_rows, write_rows

    rows = [row(), row("CDAM, 10 targets", ratio=152.0, low=150.0, high=153.0)]
    write_rows(tmp_path / "a.csv", rows)
    assert read_rows(tmp_path / "a.csv") == rows
    assert read_rows(tmp_path / "none.csv") == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_tables_show_each_row_once_and_a_dash_where_there_is_none():
    from candidates import WHOLE_PASSES
    from cost_tables import render_tables

    slow = WHOLE_PASSES[-1]
    rows = [row(), row(slow, ratio=152.4, low=150.1, high=160.0, memory=12.34), row(model="ViT-B/16", ratio=0.957)]
    rows += [row(batch=32, ratio=1.1), row("IntegratedCDAM"), row("IntegratedCDAM", steps=200, ratio=2.5)]
    rows += [row("IntegratedCDAM", model="ViT-S/16 average pooling", steps=10, ratio=3.5)]
    text = render_tables(rows, "Measured here.", "figure.png")
    lines = text.splitlines()
    assert "Measured here." in lines
    assert "| method | ViT-S/16 | ViT-B/16 |" in lines
    assert "| CDAM | 1.23 (1.20-1.30) | 0.96 (1.20-1.30) |" in lines
    assert f"| {slow} | 152 (150-160) | - |" in lines
    assert f"| {slow} | 12.3 | - |" in lines
    assert "| CDAM | 1.23 (1.20-1.30) | 1.10 (1.20-1.30) |" in lines
    assert "| IntegratedCDAM | 1.23 (1.20-1.30) | 2.50 (1.20-1.30) |" in lines
    assert "| IntegratedCDAM | 3.50 (0.250) |" in lines  # (3.5 - 1) / 10
    assert max(map(len, lines)) <= 120


@pytest.mark.slow
def test_a_single_row_is_rendered(tmp_path):
    import cost
    from cost_rows import write_rows

    write_rows(tmp_path / "performance-cpu.csv", [row()])
    cost.render(tmp_path / "performance-cpu.csv")
    assert "| CDAM | 1.23 (1.20-1.30) |" in (tmp_path / "performance-cpu.md").read_text()


def test_the_standard_set_is_that_of_the_documents():
    import cost
    from candidates import KINDS, OTHERS, OURS

    args = cost.make_parser().parse_args([])
    plan = list(cost.settings(args.models, args.batches, args.steps))
    models = {(one.model, one.batch, one.steps) for one in plan if one.methods == OURS + OTHERS}
    small = "vit_small_patch16_224"
    assert models == {(name, 4, 50) for name in args.models} | {(small, batch, 50) for batch in (1, 4, 32)}
    assert {(one.steps, "Captum LayerIntegratedGradients" in one.methods) for one in plan[6:9]} == {
        (10, True),
        (50, True),
        (200, False),
    }
    assert [(one.kind, one.steps) for one in plan[9:]] == [(kind, 10) for kind in KINDS[1:]]


def test_the_command_is_noted_without_folders():
    import cost

    parser = cost.make_parser()
    args = parser.parse_args(["--out", "/home/someone/results", "--batches", "1", "2", "--all"])
    assert cost.command(parser, args).endswith(": `python benchmarks/cost.py --batches 1 2 --all`.")


def test_results_of_another_machine_are_not_mixed(tmp_path):
    import cost

    cost.note(tmp_path / "a.txt", "torch 1.", "today.")
    cost.note(tmp_path / "a.txt", "torch 1.", "tomorrow.")
    cost.note(tmp_path / "a.txt", "torch 1.", "tomorrow.")
    assert (tmp_path / "a.txt").read_text() == "torch 1.\ntoday.\ntomorrow.\n"
    with pytest.raises(SystemExit, match=r"from: torch 1\. Here: torch 2\. Pass another --out"):
        cost.note(tmp_path / "a.txt", "torch 2.", "tomorrow.")


@pytest.mark.slow
def test_the_quick_set_measures_everything_and_goes_on_where_it_stopped(monkeypatch, tmp_path):
    from candidates import KINDS, OTHERS, OURS
    from cost_rows import read_rows, write_rows

    run(monkeypatch, "--quick", "--out", tmp_path)
    table = tmp_path / "performance-cpu.csv"
    rows = read_rows(table)
    assert {one.method for one in rows if one.model == "tiny"} == set(OURS + OTHERS)
    assert {one.model for one in rows} == {"tiny", *(f"tiny {kind}" for kind in KINDS[1:])}
    assert {(one.batch, one.steps) for one in rows if one.model == "tiny"} == {(2, 4), (1, 4), (2, 2)}
    for one in rows:
        assert math.isfinite(one.memory)
        assert one.memory > 0
        assert 0 < one.low <= one.ratio <= one.high < math.inf
        assert one.seconds_of_forward > 0
        assert one.repeats == 2
    document = (tmp_path / "performance-cpu.md").read_text()
    assert document.count("## ") == 6
    assert all(f"| {name} |" in document for name in OURS + OTHERS)
    assert str(tmp_path) not in document
    assert (tmp_path / "performance-cpu.png").stat().st_size > 20_000

    kept = [replace(one, ratio=0.125) for one in rows[:-3]]  # a mark that measuring again would overwrite
    write_rows(table, [*kept, replace(rows[-3], repeats=1)])
    run(monkeypatch, "--quick", "--out", tmp_path)
    again = read_rows(table)
    assert again[: len(kept)] == kept
    assert {one.key for one in again} == {one.key for one in rows}
    assert all(one.repeats == 2 for one in again)
    written = document, (tmp_path / "performance-cpu.png").read_bytes()
    run(monkeypatch, "--render", tmp_path)
    assert read_rows(table) == again
    assert (tmp_path / "performance-cpu.md").read_text() != written[0]  # the marks


@pytest.mark.slow
def test_memory_grows_with_what_a_method_keeps():
    """The gradient of the pixels keeps the activations of all blocks; the plain forward keeps none."""
    from candidates import make_model, methods
    from measuring import peak_memory

    model = make_model("tiny")
    images = torch.randn(2, 3, 32, 32).requires_grad_()
    runs = methods(model, images, 4)
    peaks = [peak_memory(runs[name], "cpu", times=2) for name in ("Captum InputXGradient", "Captum NoiseTunnel")]
    with torch.no_grad():
        plain = peak_memory(lambda: model(images), "cpu")
    assert plain < peaks[0] < peaks[1]
    assert statistics.mean(peaks) < 100 * plain
