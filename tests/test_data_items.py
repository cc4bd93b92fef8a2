"""Datasets of dictionaries, batches and streams; labels of several classes; masks and boxes."""

import numpy as np
import pytest
import torch
from data_runs import LABELS, compared, net, plain, save, targets
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler, default_collate

X = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(0))
Y = [2, 0, 1, 2]
PREDICTED = net()(X).argmax(1).tolist()


def explained(data, tmp_path, **settings):
    run = compared(data, tmp_path / "run", targets="label", **settings)
    assert np.allclose(run.scores().score, compared((X, Y), tmp_path / "plain", targets="label").scores().score)
    return list(targets(run).values())


class Dataset(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


ROWS = {
    "transformers": [{"pixel_values": x, "labels": y} for x, y in zip(X, Y, strict=True)],
    "MONAI": [{"image": x, "label": torch.tensor(y), "image_meta_dict": {}} for x, y in zip(X, Y, strict=True)],
    "arrays": [{"img": x.numpy(), "target": np.int64(y), "mask": None} for x, y in zip(X, Y, strict=True)],
    "tuples": [(x, torch.tensor([y])) for x, y in zip(X, Y, strict=True)],
    "one of several": [(x, torch.eye(3)[y]) for x, y in zip(X, Y, strict=True)],
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_items_of_all_kinds(tmp_path, rows):
    assert explained(Dataset(rows), tmp_path) == Y


def collated(items):
    """As transformers' collators do."""
    return {"pixel_values": torch.stack([x for x, _ in items]), "labels": torch.tensor([y for _, y in items])}


BATCHES = {
    "a batch": {"pixel_values": X, "labels": torch.tensor(Y)},
    "images and labels": (X.numpy(), np.array(Y)),
    "lists": (list(X), Y),
    "more than is known": {"image": X, "label": Y, "mask": None, "epoch": 3},
    "a loader": DataLoader(TensorDataset(X, torch.tensor(Y)), batch_size=3, shuffle=True),
    "a collator": DataLoader(list(zip(X, Y, strict=True)), batch_size=2, collate_fn=collated),
    "a list of columns": DataLoader(
        list(zip(X, Y, strict=True)), batch_size=2, collate_fn=lambda items: list(default_collate(items))
    ),
    "not batched": DataLoader(ROWS["transformers"], batch_size=None),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("data", BATCHES.values(), ids=BATCHES)
def test_batches_and_loaders(tmp_path, data):
    assert explained(data, tmp_path) == Y


@pytest.mark.slow
def test_streams_are_read_up_to_the_limit(tmp_path):
    def stream():
        yield from ROWS["transformers"]
        raise AssertionError("read too far")

    assert explained(stream(), tmp_path, limit=4) == Y
    with pytest.raises(ValueError, match=r"Expected a limit for data that are read one after the other.*limit=100"):
        compared(stream(), tmp_path / "none")


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (
            [{"pixels": X[0], "label": 1}],
            ValueError,
            "dictionary with image or pixel_values.*got the keys pixels, label",
        ),
        ([(X[0], 1, X[0, 0], 5)], ValueError, r"Expected an image, \(image, label\) or .*got 4 parts"),
        ((X, Y[:3]), ValueError, "Expected as many of each as there are samples, got 4 of image, 3 of label"),
        ({"image": X, "label": Y[:3]}, ValueError, "got 4 of image, 3 of label"),
        (DataLoader(list(X), sampler=WeightedRandomSampler([1.0] * 4, 4)), TypeError, "WeightedRandom.*Subset"),
        (TensorDataset, TypeError, "Expected `data` to be a folder, a .csv or .parquet table"),
        (5, TypeError, "Expected `data` to be a folder, a .csv or .parquet table, a dataset, a DataLoader"),
        ([], ValueError, "at least one sample"),
        ([object()], ValueError, "The first one: 0: TypeError: Expected an image as a tensor, an array or a PIL image"),
        ((X[:3, 0], [0, 1, 2]), ValueError, r"shape \(10, 10\).*first convolution takes \(3, height, width\)"),
        (X[0], ValueError, r"cannot run on sample 0, of shape \(10, 10\)"),
    ],
)
def test_what_to_return_is_said_in_a_line(tmp_path, data, error, said):
    with pytest.raises(error, match=said):
        compared(data, tmp_path / "run", transform=None)
    assert not list((tmp_path / "run").rglob("part-*"))


@pytest.mark.slow
def test_labels_of_several_classes(tmp_path):
    hot = [[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1]]
    data = [(x, torch.tensor(one)) for x, one in zip(X, hot, strict=True)]
    assert list(targets(compared(data, tmp_path / "predicted")).values()) == PREDICTED
    run = compared(data, tmp_path / "run", targets="label", metrics=["class-discrimination"])
    logits = net()(X).detach()
    best = [max((0, 2), key=lambda c: logits[0, c]), max((1, 2), key=lambda c: logits[1, c])]
    assert list(targets(run).values()) == best
    assert run.scores().error.isna().all()
    said = run.skipped().set_index("name").error.to_dict()
    assert said == {"2": "it has no label", "3": "its label is 2 zeros and ones, but the model has 3 classes"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("label", "said"),
    [
        (0.5, "expected the label to be the number of a class, or zeros and ones for all classes; got 0.5"),
        ("cat", "its label is 'cat': return the number of the class"),
        (torch.zeros(1, 10, 10), r"its label has shape \(1, 10, 10\), as a mask: return \(image, label, mask\)"),
        ({"boxes": 1}, "expected the label to be the number of a class"),
    ],
)
def test_labels_that_are_none_matter_only_where_they_are_explained(tmp_path, label, said):
    data = [(X[0], label), (X[1], 1)]
    assert list(targets(compared(data, tmp_path / "predicted")).values()) == PREDICTED[:2]
    run = compared(data, tmp_path / "run", targets="label")
    assert targets(run) == {"1": 1}
    assert run.skipped().error.str.contains(said).all()


@pytest.mark.slow
def test_names_of_classes_as_labels(tmp_path):
    data = Dataset([(X[0], "b"), (X[1], "c"), (X[2], 0)])
    data.classes = ["c", "b"]
    run = compared(data, tmp_path / "run", targets="label", labels=["a", "b", "c"])
    assert list(targets(run).values()) == [1, 2, 2]
    words = [(X[0], "DOG"), {"image": X[1], "label": "cat"}, (X[2], "cow")]
    run = compared(words, tmp_path / "words", targets="label", labels=dict(enumerate(LABELS)))
    assert list(targets(run).values()) == [1, 0]
    assert run.skipped().error.item() == "its label is 'cow': return the number of the class, or give labels=[...]"
    bare = compared(Dataset([(X[0], 1), (X[1], 0)]), tmp_path / "bare", targets="label", labels=LABELS)
    assert list(targets(bare).values()) == [1, 0]


class Peak:
    """Explains by a point in the middle of the upper left quarter."""

    def __init__(self, model):
        del model

    def attribute(self, inputs, target):
        maps = torch.zeros_like(inputs)
        maps[..., 2, 3] = 1
        return maps


def hits(data, out, **settings):
    return compared(data, out, methods={"peak": Peak}, metrics=["pointing-game"], **settings).scores()


@pytest.mark.slow
def test_masks_and_boxes_locate_the_object_whichever_class_is_explained(tmp_path):
    inside, outside = torch.zeros(10, 10), torch.ones(10, 10)
    inside[2, 3], outside[2, 3] = 1, 0
    data = [
        (X[0], 0, inside),
        (X[1], None, outside[None]),
        {"image": X[2], "mask": inside.numpy().astype(np.uint8) * 255},
        {"image": X[3], "box": [3, 2, 4, 3]},
        {"image": X[3], "bbox": torch.tensor([4.0, 2, 9, 9])},
    ]
    scores = hits(data, tmp_path / "run")
    assert scores.score.tolist() == [1, 0, 1, 1, 0]
    assert hits([(X[0], 0, inside), (X[1], 1)], tmp_path / "none").error.str.contains("object is: return").tolist() == [
        False,
        True,
    ]
    said = compared([(X[0], 0, torch.ones(9, 9)), X[1]], tmp_path / "other").skipped().error.item()
    assert "Expected a mask of shape (10, 10), as the image; got (9, 9)" in said


@pytest.mark.slow
def test_masks_of_pictures_pass_their_transform(tmp_path):
    pictures = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (60, 200)]
    mask = np.zeros((20, 20), bool)
    mask[4:6, 6:8] = True
    data = [(pictures[0], 0, mask), {"image": pictures[1], "mask": Image.fromarray(mask)}]
    scores = hits(data, tmp_path / "run", transform=lambda image: plain(image.resize((10, 10))))
    assert scores.score.tolist() == [1, 1]
    scores = hits(data, tmp_path / "flipped", transform=lambda image: plain(image.resize((10, 10)).rotate(180)))
    assert scores.score.tolist() == [0, 0]


@pytest.mark.slow
def test_images_may_be_files(tmp_path):
    files = [save(tmp_path / f"{i}.png", seed=i) for i in range(2)]
    run = compared([(files[0], 2), {"image": str(files[1]), "label": 0}], tmp_path / "run", targets="label")
    assert list(targets(run).values()) == [2, 0]
    expected = compared(torch.stack([plain(Image.open(file)) for file in files]), tmp_path / "read").scores().score
    assert np.allclose(compared(files, tmp_path / "files").scores().score, expected)
    with pytest.raises(ValueError, match=r"a list of images, got the file .*0.png: pass \['.*0.png'\]"):
        compared(files[0], tmp_path / "file")
