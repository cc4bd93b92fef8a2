"""Tables of files, labels, masks, boxes and splits."""

import numpy as np
import pandas as pd
import pytest
import quantus
import torch
from data_runs import LABELS, compared, net, plain, save, targets
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

from xai_compare.cli import main


def written(folder, rows, name="data.csv"):
    """A table of rows, and the pictures that it lists."""
    for seed, file in enumerate(dict.fromkeys(row["file"] for row in rows)):
        save(folder / file, seed=seed)
    table = pd.DataFrame(rows)
    path = folder / name
    table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False)
    return path


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.tsv"])
def test_files_labels_and_splits(tmp_path, name):
    files = ["one.png", "deep/two.png", "three.png", "one.png"]
    rows = [
        {"file": file, "label": label, "split": split, "patient": 7}
        for file, label, split in zip(
            files, ["fox", "cat", "dog", "dog"], ["test", "test", "train", "test"], strict=True
        )
    ]
    path = written(tmp_path / "set", rows, name)
    if name == "data.tsv":
        path.write_text(path.read_text().replace(",", "\t"))
    run = compared(path, tmp_path / "run", targets="label", labels=LABELS, split="test")
    explained = run.explanations()
    assert explained[["name", "target"]].to_numpy().tolist() == [["one.png", 2], ["deep/two.png", 0], ["one.png", 1]]
    assert run.run["classes"] == {"cat": 0, "dog": 1, "fox": 2}
    assert f"3 rows of {path}, test" in run.run["data"]
    frame = pd.DataFrame(rows).assign(file=[str(tmp_path / "set" / file) for file in files])
    again = compared(frame, tmp_path / "frame", targets="label", labels=LABELS, split="test")
    assert again.explanations().target.tolist() == [2, 0, 1]
    assert np.allclose(again.scores().score, run.scores().score)
    with pytest.raises(ValueError, match=r"no rows of the split 'dev'; it has test, train"):
        compared(path, tmp_path / "dev", split="dev")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("labels", "expected", "skipped"),
    [
        (["2", "0", "1"], [2, 0, 1], 0),
        ([2, None, 1], [2, 1], 1),  # a column of floats
        (["NA", "null", "nan"], [0, 2, 1], 0),  # names, in their order
        (["007", "02", "00"], None, 3),
        (["0", "3", "-1"], [0], 2),
        (["", "1", " "], [1], 2),
    ],
)
def test_labels_are_numbers_or_names(tmp_path, labels, expected, skipped):
    path = written(tmp_path, [{"file": f"{i}.png", "label": label} for i, label in enumerate(labels)])
    if expected is None:
        with pytest.raises(ValueError, match="its label is 7, but the model has 3 classes"):
            compared(path, tmp_path / "run", targets="label", limit=1)
        return
    run = compared(path, tmp_path / "run", targets="label")
    assert list(targets(run).values()) == expected
    assert len(run.skipped()) == skipped


def test_names_that_look_like_numbers_are_the_models_labels(tmp_path):
    path = written(tmp_path, [{"file": f"{i}.png", "label": str(i)} for i in (1, 2, 3)])
    run = compared(path, tmp_path / "run", targets="label", labels=["3", "1", "2"])
    assert list(targets(run).values()) == [1, 2, 0]


def test_of_several_labels_the_likeliest_is_explained(tmp_path):
    cells = ["cat|fox", "dog; fox", '["cat", "dog"]', "fox"]
    path = written(tmp_path, [{"file": f"{i}.png", "label": cell} for i, cell in enumerate(cells)])
    run = compared(path, tmp_path / "run", targets="label", labels=LABELS)
    images = torch.stack([plain(Image.open(tmp_path / f"{i}.png")) for i in range(4)])
    logits = net()(images).detach()
    allowed = [[0, 2], [1, 2], [0, 1], [2]]
    best = [max(few, key=lambda cls: row[cls].item()) for few, row in zip(allowed, logits, strict=True)]
    assert list(targets(run).values()) == best
    assert logits.argmax(1).tolist() != best


def test_masks_and_boxes_follow_the_transform(tmp_path):
    mask = np.zeros((16, 24), np.uint8)
    mask[4:10, 8:18] = 255
    rows = [{"file": f"{i}.png", "mask": cell, "box": box} for i, (cell, box) in enumerate(
        [("m.png", None), (None, "8 4 18 10"), (None, "[8, 4, 18.0, 10]"), (None, None)])]  # fmt: skip
    path = written(tmp_path, rows)
    for i in range(4):
        save(tmp_path / f"{i}.png", size=(24, 16), seed=i)
    save(tmp_path / "m.png", mask)
    transform = Compose([Resize((8, 12)), CenterCrop(8), plain])
    seen = {}

    class Kept(quantus.PointingGame):
        def __call__(self, *args, s_batch, **kwargs):
            seen.setdefault("masks", []).extend(s_batch)
            return super().__call__(*args, s_batch=s_batch, **kwargs)

    game = Kept(disable_warnings=True, normalise=False, abs=False)
    run = compared(path, tmp_path / "run", transform=transform, metrics={"game": game}, batch_size=1)
    expected = np.zeros((8, 8), bool)
    expected[2:5, 2:7] = True  # halved, and two columns cropped on either side
    assert len(seen["masks"]) == 1 + 3  # the first one was tried before the run
    for one in seen["masks"]:
        assert (one[0].astype(bool) == expected).all()
    scores = run.scores()
    assert scores.error.notna().tolist() == [False, False, False, True]
    assert "needs to know where the object is" in scores.error[3]
    assert "columns mask or box" in scores.error[3]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("box", "said"),
    [
        ("1 2 3", "Expected a box of four numbers, left, top, right and bottom in pixels.*got '1 2 3'"),
        ("8 4 8 10", "left < right and top < bottom"),
        ("0 0 13 5", "Expected a box inside the image, 12 wide and 12 high"),
        ("a b c d", "Expected a box of four numbers"),
    ],
)
def test_boxes_that_are_none_are_said(tmp_path, box, said):
    path = written(tmp_path, [{"file": "a.png", "box": box}, {"file": "b.png", "box": "1 1 5 5"}])
    run = compared(path, tmp_path / "run")
    assert run.skipped().name.tolist() == ["a.png"]
    assert pd.Series(run.skipped().error).str.contains(said).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path,label\na.png,1\n",
            "Expected columns file, label, mask, box, split, all but file optional.*got path, label",
        ),
        ("file,label\n", "Expected samples in .*data.csv, got no row"),
        ("file,label\na.png,1\n,2\n", r"Expected a file in each row of .*data.csv, got none in row\(s\) \[1\]"),
        ("", "data.csv cannot be read"),
        ("file,label\na.png,cow\na.png,cat\n", "cat -> 0, cow -> no label"),
        ("file,label\na.png,cow\na.png,calf\n", "have 2 classes and the model has 3"),
    ],
)
def test_tables_that_are_none_are_said_before_any_work(tmp_path, text, said):
    save(tmp_path / "a.png")
    (tmp_path / "data.csv").write_text(text)
    labels = LABELS if "cat" in text else []
    with pytest.raises(ValueError, match=said):
        compared(tmp_path / "data.csv", tmp_path / "run", targets="label", labels=labels)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tables_of_spreadsheets_and_folders_of_parts(tmp_path):
    path = written(tmp_path, [{"file": "a.png", "label": 1}, {"file": "b.png", "label": 2}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(targets(compared(path, tmp_path / "run", targets="label")).values()) == [1, 2]
    (tmp_path / "many.parquet").mkdir()
    for i in range(2):
        part = pd.DataFrame({"file": ["ab"[i] + ".png"], "label": [i]})
        part.to_parquet(tmp_path / "many.parquet" / f"{i}.parquet")
    run = compared(tmp_path / "many.parquet", tmp_path / "parts", targets="label")
    assert list(targets(run).values()) == [0, 1]


@pytest.mark.slow
def test_missing_files_are_skipped_and_the_line_reads_tables(tmp_path, capsys):
    path = written(tmp_path / "set", [{"file": "a.png", "label": 1}, {"file": "b.png", "label": 2}])
    (tmp_path / "set" / "b.png").unlink()
    (tmp_path / "toy.py").write_text("from data_runs import net, plain\ndef model(): return net(), plain\n")
    line = ["--model", f"python:{tmp_path}/toy.py:model", "--data", str(path), "--methods", "ixg", "--device", "cpu"]
    line += ["--metrics", "compactness", "--gallery", "0", "--resamples", "100", "--targets", "label"]
    main([*line, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "skipped b.png: FileNotFoundError" in said
    assert "1 samples, 1 scores, 0 failed, 1 samples skipped" in said


def test_a_changed_table_is_another_run(tmp_path):
    rows = [{"file": "a.png", "label": "cat"}, {"file": "b.png", "label": "dog"}, {"file": "c.png", "label": "fox"}]
    compared(written(tmp_path, rows), tmp_path / "run", targets="label")
    rows[1]["label"] = "fox"
    with pytest.raises(ValueError, match="holds another run: samples"):
        compared(written(tmp_path, rows), tmp_path / "run", targets="label", labels=LABELS)
