"""Datasets of Hugging Face, from folders made here."""

import sys

import numpy as np
import pytest
from data_runs import LABELS, compared, save, targets

from xai_compare._hugging_face import load_named


def test_without_the_library_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="need the library datasets, which is not installed: pip install datasets"):
        compared("hf:beans", tmp_path / "run")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An image folder as `datasets` reads it, two splits of three classes."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    for seed, name in enumerate(("train/cat/1", "train/fox/2", "test/cat/3", "test/dog/4", "test/fox/5")):
        save(tmp_path / "animals" / f"{name}.png", seed=seed)
    return tmp_path / "animals"


@pytest.mark.slow
def test_a_split_of_a_dataset_by_name(folder, tmp_path):
    run = compared(f"hf:{folder}:test", tmp_path / "run", targets="label", labels=["fox", "dog", "cat"])
    assert list(targets(run).values()) == [2, 1, 0]  # its own numbers are 0, 1, 2
    assert run.run["classes"] == {"cat": 2, "dog": 1, "fox": 0}
    assert run.run["data"] == f"hf:{folder}:test"
    plain = compared(folder / "test", tmp_path / "plain", targets="label", labels=["fox", "dog", "cat"])
    assert np.allclose(run.scores().score, plain.scores().score)
    by_setting = compared(f"hf:{folder}", tmp_path / "setting", targets="label", split="test")
    assert list(targets(by_setting).values()) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"Expected one split of 'hf:.*animals', as --split train; it has train, test"):
        compared(f"hf:{folder}", tmp_path / "none")


@pytest.mark.slow
def test_streams_columns_and_configurations(folder, tmp_path):
    options = {"data": {"streaming": True}}
    run = compared(f"hf:{folder}:test", tmp_path / "run", options=options, limit=2, targets="label", labels=LABELS)
    assert list(targets(run).values()) == [0, 1]
    with pytest.raises(ValueError, match="Expected a limit"):
        compared(f"hf:{folder}:test", tmp_path / "all", options=options)
    found = load_named(f"{folder}:default:test", "", {})
    assert len(found) == 3
    renamed = found.rename_columns({"image": "photo", "label": "animal"})
    renamed.to_parquet(str(tmp_path / "table" / "test.parquet"))
    columns = {"data": {"image": "photo", "label": "animal"}}
    run = compared(f"hf:{tmp_path / 'table'}:test", tmp_path / "columns", options=columns, targets="label")
    assert list(targets(run).values()) == [0, 1, 2]
    with pytest.raises(ValueError, match="got the keys photo, animal"):
        compared(renamed, tmp_path / "unnamed")


@pytest.mark.slow
def test_datasets_given_as_objects(folder, tmp_path):
    import datasets

    both = datasets.load_dataset(str(folder))
    both.save_to_disk(str(tmp_path / "saved"))
    assert list(targets(compared(f"hf:{tmp_path}/saved:test", tmp_path / "s", targets="label")).values()) == [0, 1, 2]
    assert list(targets(compared(both, tmp_path / "both", targets="label", split="test")).values()) == [0, 1, 2]
    with pytest.raises(ValueError, match="Expected `split` to be one of 'train', 'test', got 'dev'"):
        compared(both, tmp_path / "dev", split="dev")
    several = both["test"].map(lambda row: {"label": [row["label"], 0]}, features=datasets.Features(
        {"image": datasets.Image(), "label": datasets.Sequence(datasets.ClassLabel(names=LABELS))}))  # fmt: skip
    run = compared(several, tmp_path / "several", targets="label", metrics=["compactness"])
    assert run.skipped().empty
    assert targets(run)["0"] == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:", r"of the form hf:NAME\[:CONFIG\]\[:SPLIT\], got 'hf:'"),
        ("hf:a:b:c:d", "of the form"),
        ("hf:{}/nowhere", "Data 'hf:.*/nowhere' cannot be loaded: "),
        ("hf:{}/animals:dev", "Data 'hf:.*animals:dev' cannot be loaded: .*dev"),
    ],
)
def test_what_is_no_dataset_is_said(folder, tmp_path, name, said):
    with pytest.raises(ValueError, match=said):
        compared(name.format(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
