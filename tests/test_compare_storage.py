"""Runs in folders that are not on a disk: in memory and on S3."""

import json
import threading
import time

import fsspec
import pandas as pd
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from torch import nn

from xai_compare import Comparison, compare
from xai_compare import _lock as lock
from xai_compare._lock import RunningError
from xai_compare._run_folder import RunFolder
from xai_compare._storage import Storage

pytestmark = pytest.mark.slow
IMAGES = torch.randn(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def run(folder, methods=("ixg", "saliency"), seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    cheap = {"gallery": 2, "resamples": 100, "batch_size": 3, "metrics": ["compactness", "deletion"]}
    return compare(model, IMAGES, out=folder, methods=methods, **(cheap | settings))


def assert_same(one, other):
    for table in ("scores", "explanations", "summary", "tests"):
        frames = [getattr(x, table)() for x in (one, other)]
        keys = [name for name in ("sample", "metric", "method", "method_a", "method_b") if name in frames[0]]
        frames = [f.drop(columns=[c for c in f if c.endswith("seconds")]).sort_values(keys) for f in frames]
        pd.testing.assert_frame_equal(*(f.reset_index(drop=True) for f in frames), check_exact=True)


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(lock, "_SETTLING", 0.0)


@pytest.fixture
def memory():
    yield "memory://runs/one"
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def server():
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": server, "key": "a", "secret": "b"})
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket/runs/one"
    fsspec.filesystem("s3").rm("bucket", recursive=True)


@pytest.fixture(params=["memory", "s3"])
def folder(request):
    return request.getfixturevalue(request.param)


def test_a_run_elsewhere_is_that_on_a_disk_and_grows(folder, tmp_path):
    whole = run(tmp_path / "whole")
    run(folder, ["ixg"], limit=4)
    first = Storage(folder).modified("scores.parquet/part-0000000000.parquet")
    grown = run(folder)
    assert_same(grown, whole)
    assert_same(Comparison(folder), whole)
    assert Storage(folder).modified("scores.parquet/part-0000000000.parquet") >= first
    assert grown.report() == f"{folder}/report.html"
    page = fsspec.open(grown.report(), "rt", encoding="utf-8")
    with page as file:
        assert "Saliency" in file.read()
    files, path = fsspec.url_to_fs(f"{folder}/scores.parquet")
    assert pd.read_parquet(path, filesystem=files).score.count() == 28
    with pytest.raises(ValueError, match=rf"{folder} holds another run: weights was"):
        run(folder, seed=1)


def test_nothing_is_computed_twice(folder):
    run(folder)
    names = Storage(folder).all_names()
    before = {name: Storage(folder).modified(name) for name in names if "part-" in name}
    run(folder)
    assert {name: Storage(folder).modified(name) for name in before} == before
    assert not [name for name in Storage(folder).all_names() if name.endswith(".part")]


def test_a_damaged_part_elsewhere_is_computed_again(folder, tmp_path):
    run(folder)
    Storage(folder).write("scores.parquet/part-0000000003.parquet", b"PAR1 nonsense")
    with pytest.warns(UserWarning, match=r"Part 3 of .* is damaged"):
        assert_same(run(folder), run(tmp_path / "whole"))


def test_a_folder_with_something_else_is_refused(folder):
    Storage(folder).write("thesis.txt", "words")
    with pytest.raises(ValueError, match=r"is not empty and holds no run"):
        run(folder)
    with pytest.raises(ValueError, match=r"holds no run: there is no run\.json"):
        Comparison(folder)


def test_two_commands_are_kept_apart_and_a_dead_one_is_forgotten(folder, monkeypatch):
    with RunFolder(folder).locked("xai-compare --seed 1"):
        said = r"written by process \d+ on .* \(xai-compare --seed 1\), .*sign of life \d+ s ago.*free 60 s after that"
        with pytest.raises(RunningError, match=said):
            run(folder)
    run(folder)  # it is free again
    Storage(folder).write(".holder.json.part", json.dumps({"about": "a dead process", "id": "1"}))
    monkeypatch.setattr(lock, "_LEASE", 0.0)
    assert len(run(folder, ["ixg"]).scores()) == 28


def test_of_two_that_begin_at_once_one_goes_on(folder, monkeypatch):
    monkeypatch.setattr(lock, "_SETTLING", 0.3)
    begin, leave, ended = threading.Barrier(2), threading.Event(), []

    def hold():
        begin.wait()
        try:
            with RunFolder(folder).locked(""):
                leave.wait(20)
                ended.append("held")
        except RunningError:
            ended.append("refused")
            leave.set()

    threads = [threading.Thread(target=hold) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert sorted(ended) == ["held", "refused"]


def test_signs_of_life_are_given_and_a_lost_folder_is_not_freed(memory, monkeypatch):
    monkeypatch.setattr(lock, "_RENEWAL", 0.01)
    files = Storage(memory)
    with RunFolder(memory).locked(""):
        first = files.modified(".holder.json.part")
        for _ in range(500):
            if files.modified(".holder.json.part") > first:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no sign of life")
        files.write(".holder.json.part", json.dumps({"about": "another", "id": "2"}))
        time.sleep(0.05)
    assert json.loads(files.read(".holder.json.part"))["about"] == "another"


def test_folders_that_cannot_be_reached_are_errors_that_say_why():
    with pytest.raises(ValueError, match="The folder foo://a/b cannot be reached: Protocol not known: foo"):
        run("foo://a/b")
    with pytest.raises(ValueError, match=r"cannot be reached: .*install"):
        run("gs://a/b")


def test_what_cannot_be_written_elsewhere_is_said_before_the_work(s3):
    with pytest.raises(OSError, match=r"Nothing can be written to s3://no-such-bucket/run: .* another folder"):
        run("s3://no-such-bucket/run")
