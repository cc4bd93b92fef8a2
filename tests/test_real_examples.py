"""The examples on real weights: what they read and measure, and each whole on random weights and a little real data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import real_biomarkers
import real_ca_stream
import real_cdam
import real_texts
import torch
from box_evidence import share_on, shares_table
from frozen_vit import WithHead, class_tokens, load_backbone, logistic_head
from paths import ROOT
from photographs import GROUPS, load_photographs
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score
from torch import nn

DATA = ROOT.parent / "shared" / "data"


def needs(name):
    """Skips a test where data are absent."""
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"the data {name} are not there")


def fruit_folder(folder, names=(("apple", "banana"), ("apple",), ("banana",), ("orange",))):
    """Pictures of halves: the left one a thing, the right one another, or grey."""
    colours = {"apple": "red", "banana": "yellow", "orange": "orange"}
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for number, things in enumerate(names):
            picture = Image.new("RGB", (40, 20), "grey")
            boxes = ""
            for half, name in enumerate(things):
                ImageDraw.Draw(picture).rectangle((20 * half, 0, 20 * half + 19, 19), fill=colours[name])
                edges = {"xmin": 20 * half, "ymin": 0, "xmax": 20 * half + 20, "ymax": 20}
                box = "".join(f"<{key}>{value}</{key}>" for key, value in edges.items())
                boxes += f"<object><name>{name}</name><bndbox>{box}</bndbox></object>"
            picture.save(folder / split / f"{number}.jpg", quality=95)
            (folder / split / f"{number}.xml").write_text(f"<annotation>{boxes}</annotation>")
    return folder


def test_photographs_of_fruit_have_the_area_of_each_class(tmp_path):
    found = load_photographs(fruit_folder(tmp_path), "train", 28)
    assert found.labels.tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    left = torch.zeros(28, 28, dtype=torch.bool)
    left[:, :14] = True
    assert torch.equal(found.areas[0, 0], left)
    assert torch.equal(found.areas[0, 1], ~left)
    assert not found.areas[0, 2].any()
    red, green = found.images[0, 0], found.images[0, 1]
    assert red[14, 5] > 1
    assert green[14, 5] < -1


def test_photographs_of_coco_have_masks_of_groups(tmp_path):
    for kind in ("images", "object_detection/labels", "semantic_segmentation/masks"):
        (tmp_path / kind / "train2017").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "images/train2017/a.jpg")
    (tmp_path / "object_detection/labels/train2017/a.txt").write_text("0 .5 .5 1 1\n23 .5 .5 1 1\n79 .5 .5 1 1\n")
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 5:10], mask[:, 10:15], mask[:, 15:] = 1, 25, 118  # a person, a giraffe, a floor
    Image.fromarray(mask).save(tmp_path / "semantic_segmentation/masks/train2017/a.png")
    found = load_photographs(tmp_path, "train", 20)
    names = list(GROUPS)
    assert [names[i] for i in found.labels[0].nonzero()[:, 0]] == ["person", "animal", "indoor"]
    assert [names[i] for i in found.areas[0].flatten(1).any(1).nonzero()[:, 0]] == ["person", "animal"]
    assert found.areas[0, names.index("animal")].any(0).nonzero()[:, 0].tolist() == [10, 11, 12, 13, 14]
    with pytest.raises(FileNotFoundError, match="Expected a folder of fruit"):
        load_photographs(tmp_path / "images", "train", 20)


def test_shares_on_areas_are_of_what_is_positive():
    maps, area = torch.tensor([[[1.0, -5.0], [3.0, 0.0]]]), torch.tensor([[[True, True], [False, False]]])
    here, there = share_on(maps, area), share_on(maps, ~area)
    assert (float(here), float(there)) == (0.25, 0.75)
    rows = shares_table({"A": (here, there)}, [3]).set_index("metric").score
    assert rows[["asked box", "other box", "asked - other", "asked > other"]].tolist() == [0.25, 0.75, -0.5, 0]
    assert share_on(-maps.abs(), area).isnan().all()


def test_the_head_reads_the_class_token_as_the_regression_does(tmp_path):
    torch.manual_seed(0)
    backbone = load_backbone("random")
    images = torch.randn(12, 3, 28, 28)
    tokens = class_tokens(backbone, images, tmp_path)
    assert torch.equal(class_tokens(backbone, images, tmp_path), tokens)  # from its file
    assert len([*tmp_path.iterdir()]) == 1
    labels = torch.stack([tokens[:, 0] > tokens[:, 0].median(), torch.zeros(12, dtype=torch.bool)], 1)
    head = logistic_head(tokens, labels)
    with torch.no_grad():
        logits = WithHead(backbone, head)(images)
        torch.testing.assert_close(logits, head(backbone(images).last_hidden_state[:, 0]))
    assert roc_auc_score(labels[:, 0].numpy(), logits[:, 0].numpy()) > 0.9
    assert logits[:, 1].eq(-1).all()


def test_a_cell_that_is_drawn_has_the_measures_it_was_drawn_with():
    picture = Image.new("RGB", (256, 256), (230, 230, 230))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((68, 98, 187, 157), fill=(180, 150, 180))  # axes 120 and 60
    draw.ellipse((108, 108, 147, 147), fill=(80, 40, 120))
    values, (cell, rim, nucleus) = real_biomarkers.measure(picture, (68, 98, 188, 158))
    diameter, elongation, darkness, granularity = values
    assert diameter == pytest.approx(np.sqrt(120 * 60), rel=0.03)
    assert elongation == pytest.approx(2, rel=0.05)
    assert darkness == pytest.approx(1 - 40 / 255, abs=0.05)
    assert nucleus.sum() == pytest.approx(np.pi * 20**2, rel=0.1)
    assert cell.sum() == pytest.approx(np.pi * 60 * 30, rel=0.05)
    assert not (rim & nucleus).any()
    noisy = np.asarray(picture).astype(int) + np.random.default_rng(0).integers(-12, 13, (256, 256, 1))
    grained = real_biomarkers.measure(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), (68, 98, 188, 158))
    kept = 1 - 2 / (8 * np.pi) + 1 / (16 * np.pi)  # of white noise, when a Gaussian of 2 pixels is taken away
    assert grained[0][3] ** 2 - granularity**2 == pytest.approx((25**2 - 1) / 12 / 255**2 * kept, rel=0.1)
    assert real_biomarkers.window(picture, (1, 98, 120, 158), real_biomarkers.Random(0)) is None  # cut off


def test_the_ridge_head_learns_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    tokens = 3 + 2 * torch.randn(200, 5, generator=generator)
    values = torch.stack([tokens[:, 0] - 2 * tokens[:, 3], torch.full((200,), 4.0) + tokens[:, 1]], 1)
    with torch.no_grad():
        found = real_biomarkers.ridge_head(tokens, values)(tokens)
    torch.testing.assert_close(found, values, atol=0.1, rtol=0)


def test_absolute_relevance_is_shared_out_among_regions():
    regions = torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    regions[0, 0, :, :2], regions[0, 1, 0], regions[0, 2, :2, :2] = True, True, True
    heat = torch.tensor([[3.0, -1.0], [-2.0, 2.0]]).expand(4, 1, 2, 2)  # absolute 8: left 5, top left 3, top 4
    rows = real_biomarkers.measured({"A": heat}, regions).set_index(["method", "output", "region"]).share
    assert [rows["A", "diameter", one] for one in ("cell", "rim", "nucleus")] == [5 / 8, 2 / 8, 3 / 8]
    assert [rows["uniform", "diameter", one] for one in ("cell", "rim", "nucleus")] == [1 / 2, 1 / 4, 1 / 4]


def test_trees_are_read_word_by_word(tmp_path):
    lines = ["(3 (2 (2 A) (4 joy)) (1 -LRB-))", "(2 (2 So) (2 so))", "(0 (1 bad) (2 .))"]
    (tmp_path / "test.txt").write_text("\n".join(lines))
    assert real_texts.read_trees(tmp_path / "test.txt") == (
        [["A", "joy", "("], ["bad", "."]],
        [1, 0],
        [[2, 4, 1], [1, 2]],
    )


def test_the_auroc_of_words_sums_their_pieces_and_leaves_out_what_is_neutral():
    places = torch.tensor([[-1, 0, 1, 1, 2, 3, -1], [-1, 0, 1, -1, -1, -1, -1]])
    words = [[4, 1, 2, 3], [3, 3]]
    test = real_texts.Texts(*(torch.zeros(2, 7).long() for _ in range(2)), torch.zeros(2).long(), places, words)
    maps = torch.tensor([[9.0, 2.0, 1.5, 1.0, -9.0, 3.0, -9.0], [0.0] * 7])
    first, second = real_texts.aurocs(maps, test)  # words 2, 2.5, -9 and 3: of 2 > 2.5 and 3 > 2.5 one is right
    assert first == 0.5
    assert np.isnan(second)


def run(example, tmp_path, *given):
    example.main([*map(str, given), "--out", str(tmp_path)])
    (written,) = tmp_path.glob("*.md")
    return written.read_text(), pd.read_csv(written.with_suffix(".csv"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of random models
def test_streams_are_trained_and_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(real_ca_stream, "load_network", small_network)
    data = fruit_folder(tmp_path / "fruit")
    (tmp_path / "out").mkdir()
    text, rows = run(
        real_ca_stream, tmp_path / "out", "--data", data, "--side", 32, "--epochs", 2, "--images", 3, "--stages", 0, 1
    )
    assert set(rows.pooling) == {"GAP", "S0", "S1", "S0, class-specific"}
    assert len(rows) == 3 * (2 + 3 * 3)
    assert rows[["AD", "AG", "AI", "I", "D"]].stack().between(0, 100).all()
    assert rows.groupby("pooling").AD.mean().nunique() == 4
    assert "the sign is the paper's for" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a model that has hardly learned
def test_a_network_learns_from_photographs_without_a_class_whose_share_is_measured(tmp_path, monkeypatch):
    learned = []
    learn = real_ca_stream.learn

    def watched(model, logits, train, *given):
        learned.append((model, train.labels.any(0).tolist()))
        learn(model, logits, train, *given)

    monkeypatch.setattr(real_ca_stream, "learn", watched)
    data = fruit_folder(tmp_path / "fruit", (("apple", "banana"), *[("apple",), ("orange",)] * 4))
    (tmp_path / "out").mkdir()
    few = ["--side", 48, "--epochs", 1, "--images", 3, "--stages", 3]
    given = ["--data", data, "--network", "resnet", "--network-epochs", 20, "--unseen", "banana", *few]
    text, rows = run(real_ca_stream, tmp_path / "out", *given)
    assert [type(model).__name__ for model, _ in learned] == ["ResNet", "CAStream", "CAStream"]
    assert all(seen == [True, False, True] for _, seen in learned)
    assert rows.mAP[0] == 100  # red and orange
    assert text.count("photographs of banana") == 1
    shares = text.split("photographs of banana")[1]
    assert "| uniform | 0.500 (0.500 to 0.500) |" in shares  # the right half, of two photographs
    assert shares.count("| raw attention, ") == 2
    with pytest.raises(ValueError, match="--unseen to be one of apple, banana, orange, got 'pear'"):
        real_ca_stream.main([*map(str, given), "--unseen", "pear", "--out", str(tmp_path)])


def test_the_share_of_a_class_that_was_not_seen_is_that_on_its_area(tmp_path):
    folder = fruit_folder(tmp_path)
    train, test = (load_photographs(folder, split, 32) for split in ("train", "test"))
    train, test, unseen = real_ca_stream.without(train, test, "banana")
    assert (len(train.images), len(test.images)) == (2, 2)
    assert unseen.areas[:, 1].double().mean((1, 2)).tolist() == [0.5, 0.5, 0.5, 0.5]
    left = torch.zeros(4, 32, 32)
    left[:, :, :16] = 1
    assert share_on(left, unseen.areas[:, 1]).tolist() == [0, 1, 0, 1]


def small_network(weights, classes):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU())
            self.layer2 = nn.Sequential(nn.Conv2d(6, 8, 3, 2), nn.ReLU())
            self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

        def forward(self, x):
            return self.classifier(self.pool(self.layer2(self.layer1(x))).flatten(1))

    return Net().eval()


def test_average_precision_is_the_mean_over_the_classes_that_are_there():
    labels = torch.tensor([[True, False], [False, False], [True, False]])
    logits = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    assert real_ca_stream.precision(logits, labels) == pytest.approx(100 * (1 + 2 / 3) / 2)


@pytest.mark.slow
@needs("bccd")
@pytest.mark.filterwarnings("ignore")  # of random models
def test_biomarkers_of_a_few_cells(tmp_path, monkeypatch):
    split_files = real_biomarkers.split_files
    monkeypatch.setattr(real_biomarkers, "split_files", lambda folder, split: split_files(folder, split)[:8])
    text, rows = run(real_biomarkers, tmp_path, "--data", DATA / "bccd", "--vision", "random", "--side", 56)
    assert rows.share.between(0, 1).all()
    wide = rows[rows.method == "uniform"].groupby("region").share.mean()
    assert 0.05 < wide["nucleus"] < wide["cell"] < 0.6
    assert (tmp_path / "real_biomarkers.png").stat().st_size > 10_000
    assert "| granularity |" in text


@needs("sst")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of random models
def test_words_of_a_few_sentences(tmp_path):
    folder = Path(tmp_path) / "bert"
    folder.mkdir()
    tokenizer = word_tokenizer(DATA / "sst" / "dev.txt")
    tokenizer.save(str(folder / "tokenizer.json"))
    (tmp_path / "out").mkdir()
    given = ["--data", DATA / "sst", "--text", folder, "--random", "--train", 32, "--texts", 24]
    text, rows = run(real_texts, tmp_path / "out", *given)
    assert set(rows.metric) == {"AUROC of words", "loss by removal"}
    assert rows.score.dropna().between(0, 1).all()
    assert rows[rows.metric == "AUROC of words"].groupby("method").score.mean().nunique() >= 6
    assert "Accuracy: plain" in text


def word_tokenizer(file):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word.lower() for text in real_texts.read_trees(file)[0] for word in text}
    named = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(named, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", named["[SEP]"]), ("[CLS]", named["[CLS]"]))
    return tokenizer


@needs("fruit")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of random models
def test_cdams_tables_of_a_few_questions(tmp_path, monkeypatch):
    few = {name: given for name, given in real_cdam.METHODS.items() if name in ("cdam", "attention", "random")}
    monkeypatch.setattr(real_cdam, "METHODS", few)
    monkeypatch.setattr(real_cdam, "TITLES", {name: name for name in few})
    given = ["--data", DATA / "fruit", "--vision", "random", "--side", 56, "--limit", 6, "--boxes", 2, "--steps", 2]
    text, rows = run(real_cdam, tmp_path, *given)
    shares = rows.groupby(["method", "metric"]).score.mean()
    assert 0 < shares["cdam", "asked box"] < 1
    assert shares["random", "asked box"] == pytest.approx(shares["uniform", "asked box"], abs=0.05)
    photographs = rows[rows.metric == "asked box"].groupby("method")["sample"].apply(sorted)
    assert len(photographs["cdam"]) < 6  # of 6 questions
    for metric in ("compactness", "box-sensitivity", "fidelity", "fidelity-discrimination"):
        own = rows[(rows.metric == metric) & (rows.method == "cdam")]
        assert sorted(own["sample"]) == photographs["cdam"]
        assert f"{own.score.mean():.3g} (" in text.split("Tables 1 to 3")[1]
