"""`xai-compare` killed, stopped, resumed and on several processes: always the same numbers."""

import os
import random
import re
import signal
import time
from contextlib import contextmanager, suppress

import pandas as pd
import pytest
from forked_commands import Commands

from xai_compare import Comparison

pytestmark = pytest.mark.slow

TOY = """
import pathlib, time, torch
from torch import nn

CAP = pathlib.Path(__file__).with_name("cap")

def waits():
    if CAP.exists():
        most, out = CAP.read_text().split(" ", 1)
        return len(list(pathlib.Path(out, "scores.parquet").glob("part-*"))) >= int(most)

class Slow(nn.Module):
    def __init__(self, pause):
        super().__init__()
        self.pause, self.features, self.head = pause, nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        time.sleep(self.pause)
        while waits():
            time.sleep(0.01)
        return self.head(self.features(x).relu().mean((2, 3)))

def model(pause=0.0):
    torch.manual_seed(3)
    return Slow(pause).eval()

def data():
    torch.manual_seed(4)
    return torch.rand(11, 1, 12, 12)
"""
TIMES = ["seconds", "explain_seconds"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    found = Commands(tmp_path_factory.mktemp("logs"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    file = tmp_path_factory.mktemp("toy") / "toy.py"
    file.write_text(TOY)
    return file


@pytest.fixture
def capped(toy):
    """Lets runs into a folder finish so many of their six batches and no more, however slow the machine is."""

    @contextmanager
    def capped(out, most):
        cap = toy.with_name("cap")
        cap.write_text(f"{most} {out}")
        try:
            yield
        finally:
            cap.unlink()

    return capped


@pytest.fixture(scope="module")
def line(toy):
    """The command, but for the folder."""
    return [
        *("--model", f"python:{toy}:model", "--data", f"python:{toy}:data", "--option", "model.pause=0.001"),
        *("--methods", "ixg,smoothgrad,random", "--metrics", "box-sensitivity,class-discrimination,sparseness"),
        *("--option", "smoothgrad.nt_samples=4", "--option", "box-sensitivity.num_boxes=3", "--resamples", "200"),
        *("--batch-size", "2", "--gallery", "2", "--device", "cpu"),
    ]


@pytest.fixture(scope="module")
def whole(commands, line, tmp_path_factory):
    """An uninterrupted run on one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    code, said = commands.run([*line, "--out", out])
    assert code == 0, said
    assert len(pd.read_parquet(out / "scores.parquet")) == 11 * 3 * 3
    return out


def assert_same(out, whole):
    """Row by row the same tables, and the same conclusions."""
    for name in ("scores", "explanations", "curves"):
        found, expected = (
            pd.read_parquet(one / f"{name}.parquet").drop(columns=TIMES, errors="ignore") for one in (out, whole)
        )
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
    for name in ("summary.csv", "tests.csv"):
        found, expected = (pd.read_csv(one / name).drop(columns=TIMES, errors="ignore") for one in (out, whole))
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
    found, expected = (Comparison(one).run for one in (out, whole))
    assert (found["identity"], found["forwards"]) == (expected["identity"], expected["forwards"])
    assert (out / "report.html").exists()


def parts(out):
    return len(list((out / "scores.parquet").glob("part-*"))) if out.exists() else 0


def wait_until(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_run_that_is_killed_five_times_ends_as_if_it_had_not_been(commands, line, whole, tmp_path, capped):
    out, draw = tmp_path / "run", random.Random(1)
    with capped(out, 5):
        for kill in range(5):
            done = parts(out)
            job = commands.start([*line, "--out", out])
            if kill == 0:
                wait_until(out.exists)  # before a single part is there
            else:
                wait_until(lambda done=done: parts(out) > min(done, 4))
            time.sleep(draw.uniform(0, 0.1))
            os.kill(job.pid, signal.SIGKILL)
            assert commands.wait(job)[0] == -signal.SIGKILL
            assert done <= parts(out) <= 5
            assert not (out / "report.html").exists()
    assert parts(out) >= 4
    code, said = commands.run([*line, "--out", out])
    assert code == 0, said
    assert_same(out, whole)
    assert not list(out.rglob("*.part"))


@pytest.mark.large
@pytest.mark.parametrize("processes", [1, 3])
def test_kills_at_any_moment_leave_the_numbers_as_they_are(commands, line, whole, tmp_path, processes):
    """25 kills each, the preparation and the writing of the report included; a run that gets through begins anew."""
    draw, kills, runs = random.Random(processes), 0, 0
    begun = time.monotonic()
    assert commands.run([*line, "--out", tmp_path / "timed"], processes)[0] == 0
    seconds = time.monotonic() - begun
    while kills < 25:
        out = tmp_path / f"run-{runs}"
        job = commands.start([*line, "--out", out], processes)
        time.sleep(draw.uniform(0, 1.1 * seconds))
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        code, said = commands.wait(job)
        if code == 0:
            assert_same(out, whole)
            runs += 1
        else:
            assert code == -signal.SIGKILL, said
            kills += 1
    code, said = commands.run([*line, "--out", tmp_path / f"run-{runs}"], processes)
    assert code == 0, said
    assert_same(tmp_path / f"run-{runs}", whole)


def test_ctrl_c_says_where_results_are_and_loses_at_most_a_batch(commands, line, whole, tmp_path, capped):
    out = tmp_path / "run"
    with capped(out, 5):
        job = commands.start([*line, "--out", out])
        wait_until(lambda: parts(out) >= 2)
        os.kill(job.pid, signal.SIGINT)
        code, said = commands.wait(job)
    assert code == 130
    assert f"xai-compare: Stopped. Finished scores are kept in {out}; run the same command again to continue." in said
    assert "Traceback" not in said
    left = parts(out)
    assert 2 <= left < 6
    before = {part: part.stat().st_mtime_ns for part in (out / "scores.parquet").glob("part-*")}
    assert commands.run([*line, "--out", out])[0] == 0
    assert all(part.stat().st_mtime_ns == when for part, when in before.items())  # nothing is computed twice
    assert_same(out, whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_the_numbers_of_one(commands, line, whole, tmp_path, processes):
    out = tmp_path / "run"
    code, said = commands.run([*line, "--out", out], processes)
    assert code == 0, said
    assert_same(out, whole)
    assert Comparison(out).run["processes"] == processes
    assert f", {processes} processes, 1 thread each)" in Comparison(out).run["device"]
    assert ", 1 thread)" in Comparison(whole).run["device"]
    assert said.count("11 samples, 99 scores, 0 failed") == 1  # one process speaks


def test_a_worker_that_dies_ends_the_run_which_goes_on_with_another_number_of_processes(
    commands, line, whole, tmp_path, capped
):
    out = tmp_path / "run"
    with capped(out, 4):  # while each process may be about to write one
        job = commands.start([*line, "--out", out], 2)
        wait_until(lambda: parts(out) >= 1)
        with open(f"/proc/{job.pid}/task/{job.pid}/children") as file:
            workers = [int(pid) for pid in file.read().split()]
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        code, said = commands.wait(job)
    assert code == 1
    assert re.search("another process of the run (has|may have) exited", said)  # it notices, or is stopped first
    assert f"Finished scores are kept in {out}; run the same command again to continue." in said
    assert 1 <= parts(out) < 6
    assert not (out / "report.html").exists()
    assert commands.run([*line, "--out", out], 3)[0] == 0
    assert_same(out, whole)


def test_what_one_process_refuses_all_refuse(commands, line, whole, tmp_path):
    code, said = commands.run([*line, "--out", whole, "--seed", "1"], 2)
    assert code == 1
    assert "settings.seed was 0 and is 1" in said
    assert_same(whole, whole)


def test_two_models_killed_and_on_two_processes_have_the_numbers_of_one_alone(commands, line, whole, tmp_path, capped):
    out = tmp_path / "run"
    models = [text for name in ("first", "second") for text in ("--model", f"{name}={line[1]}")]
    line = [*models, *line[2:], "--out", out]
    for most in (3, 8):  # of twelve batches: within the first model, and within the second
        with capped(out, most):
            job = commands.start(line)
            wait_until(lambda most=most: parts(out) >= most)
            os.kill(job.pid, signal.SIGKILL)
            commands.wait(job)
    code, said = commands.run(line, 2)
    assert code == 0, said
    scores, expected = (pd.read_parquet(one / "scores.parquet").drop(columns="seconds") for one in (out, whole))
    for name in ("first", "second"):
        found = scores[scores.model == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected.drop(columns="model"), check_exact=True)
    assert Comparison(out).run["interruptions"] == 2
    assert {one.name for one in out.glob("*.html")} == {"report.html", "report-first.html", "report-second.html"}
