"""Which class a name in the data is: of folders, of torchvision's datasets, of a model's labels."""

import warnings

import pytest
import torch
import torchvision
from data_runs import LABELS, compared, net, plain, save, targets
from PIL import Image

from xai_compare._classes import classes_of
from xai_compare.cli import main


def folders(root, *names):
    for seed, name in enumerate(names):
        save(root / name / "0.png", seed=seed)
    return root


def test_folders_are_the_models_labels_and_hidden_ones_are_none(tmp_path):
    root = folders(tmp_path / "data", "cat", "fox", ".ipynb_checkpoints", "fox/.thumbnails")
    run = compared(root, tmp_path / "run", targets="label", labels=LABELS)
    assert targets(run) == {"cat/0.png": 0, "fox/0.png": 2}
    assert run.run["classes"] == {"cat": 0, "fox": 2}
    assert run.skipped().empty
    page = run.report().read_text()
    assert "Name in the data" in page


def test_without_labels_folders_are_numbered_as_torchvision_does(tmp_path):
    root = folders(tmp_path / "data", "b", "a", "10", "B", "é")
    run = compared(root, tmp_path / "run", net(classes=5), targets="label")
    theirs = torchvision.datasets.ImageFolder(root)
    assert run.run["classes"] == theirs.class_to_idx
    expected = {f"{name}/0.png": index for name, index in theirs.class_to_idx.items()}
    assert targets(run) == expected


def test_an_empty_folder_is_a_class_and_a_linked_one_has_images(tmp_path):
    root = folders(tmp_path / "data", "a", "c")
    (root / "b").mkdir()
    folders(tmp_path, "elsewhere")
    (root / "d").symlink_to(tmp_path / "elsewhere")
    (root / "d" / "loop").symlink_to(root)
    run = compared(root, tmp_path / "run", net(classes=4), targets="label")
    assert targets(run) == {"a/0.png": 0, "c/0.png": 2, "d/0.png": 3}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (["cat", "fox"], [], r"have 2 classes and the model has 3.*cat -> 0, fox -> 1.*labels=\["),
        (["cat", "fox"], ["Katze", "Hund", "Fuchs"], "have 2 classes and the model has 3"),
        (["cat", "fix"], LABELS, r"1 of the 2 names .* 3 labels \(cat, dog, fox\): cat -> 0, fix -> no label"),
        (["cat"], ["cat", "dog", "Cat"], None),  # spelled alike
        (["CAT"], ["cat", "dog", "Cat"], "CAT -> one of the labels 0, 2"),
        (["cat"], ["cat", "dog"], "all 3 classes of the model as `labels`, got 2"),
    ],
)
def test_what_does_not_tell_the_class_is_refused_only_where_labels_are_explained(tmp_path, names, labels, said):
    root = folders(tmp_path / "data", *names)
    if said is None:
        assert targets(compared(root, tmp_path / "run", targets="label", labels=labels)) == {"cat/0.png": 0}
        return
    with pytest.raises(ValueError, match=said):
        compared(root, tmp_path / "run", targets="label", labels=labels)
    assert not (tmp_path / "run").exists()
    run = compared(root, tmp_path / "run", labels=labels)
    assert len(run.scores()) == len(names)
    assert run.run["classes"] == {}


def test_names_are_spelled_freely_and_labels_list_synonyms():
    labels = ["tench, Tinca tinca", "great white shark, white shark", "Tabby"]
    found = classes_of(["Great_White-shark", "tabby", "tinca tinca"], labels)
    assert dict(found.numbers) == {"Great_White-shark": 1, "tabby": 2, "tinca tinca": 0}


@pytest.mark.slow
def test_parts_of_the_data_are_no_classes(tmp_path):
    root = folders(tmp_path / "data", "train/cat", "train/fox", "val/cat", "val/dog", "val/fox")
    with pytest.raises(ValueError, match=r"train, val, which look like parts of the data.*split='val'.*--split val"):
        compared(root, tmp_path / "run", net(classes=2), targets="label")
    with pytest.warns(UserWarning, match="look like parts of the data"):
        assert len(compared(root, tmp_path / "all").scores()) == 5
    run = compared(root, tmp_path / "val", targets="label", split="val")
    assert targets(run) == {"cat/0.png": 0, "dog/0.png": 1, "fox/0.png": 2}
    with pytest.raises(ValueError, match="has no folder 'test'; its folders are train, val"):
        compared(root, tmp_path / "none", split="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = compared(root, tmp_path / "named", targets="label", labels=["x", "val", "train"])  # these are classes
    assert set(targets(named).values()) == {1, 2}


@pytest.mark.slow
def test_labels_and_split_on_the_line(tmp_path, capsys):
    (tmp_path / "toy.py").write_text("from data_runs import net, plain\ndef model(): return net(), plain\n")
    root = folders(tmp_path / "data", "test/cat", "test/fox")
    line = ["--model", f"python:{tmp_path}/toy.py:model", "--data", str(root), "--methods", "ixg", "--device", "cpu"]
    line += ["--metrics", "compactness", "--gallery", "0", "--resamples", "100", "--targets", "label"]
    line += ["--split", "test", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main(line)
    assert "The data have 2 classes and the model has 3" in capsys.readouterr().err
    main([*line, "--option", 'data.labels=["cat", "dog", "fox"]'])
    run = compared(root, tmp_path / "other", targets="label", split="test", labels=LABELS)
    assert targets(run) == {"cat/0.png": 0, "fox/0.png": 2}
    assert "2 samples" in capsys.readouterr().out


@pytest.mark.slow
def test_classes_of_a_dataset_are_matched_too(tmp_path):
    root = folders(tmp_path / "data", "cat", "fox")
    theirs = torchvision.datasets.ImageFolder(root)
    assert [label for _, label in theirs] == [0, 1]
    run = compared(theirs, tmp_path / "run", targets="label", labels=LABELS)
    assert targets(run) == {"0": 0, "1": 2}
    assert run.run["classes"] == {"cat": 0, "fox": 2}
    loader = torch.utils.data.DataLoader(torchvision.datasets.ImageFolder(root, transform=plain), batch_size=2)
    assert targets(compared(loader, tmp_path / "loaded", targets="label", labels=LABELS)) == {"0": 0, "1": 2}
    wrong = torchvision.datasets.ImageFolder(folders(tmp_path / "wrong", "cat", "cow"))
    with pytest.raises(ValueError, match="cow -> no label"):
        compared(wrong, tmp_path / "wrong run", targets="label", labels=LABELS)
    assert isinstance(theirs[0][0], Image.Image)


@pytest.mark.slow
def test_parts_of_a_dataset_keep_its_names_and_their_number_is_checked(tmp_path):
    theirs = torchvision.datasets.ImageFolder(folders(tmp_path / "data", "fox", "cat"))
    part, both = torch.utils.data.Subset(theirs, [1]), torch.utils.data.ConcatDataset([theirs, theirs])
    assert targets(compared(part, tmp_path / "part", targets="label", labels=LABELS)) == {"0": 2}
    found = targets(compared(both, tmp_path / "both", targets="label", labels=LABELS))
    assert list(found.values()) == [0, 2, 0, 2]
    with pytest.raises(ValueError, match=r"have 2 classes and the model has 3.*cat -> 0, fox -> 1"):
        compared(theirs, tmp_path / "run", targets="label")
    assert targets(compared(theirs, tmp_path / "two", net(classes=2), targets="label")) == {"0": 0, "1": 1}


@pytest.mark.parametrize("labels", ["cat", [1, 2, 3], 5])
def test_labels_are_a_list_of_names(tmp_path, labels):
    with pytest.raises(TypeError, match="Expected `labels` to be a list of the classes' names"):
        compared(torch.rand(2, 3, 8, 8), tmp_path / "run", labels=labels)
