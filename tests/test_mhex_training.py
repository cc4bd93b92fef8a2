"""The training scripts of MHEX on tiny data: what they read, learn and write."""

import csv

import pytest
import torch
import train_mhex
import train_mhex_bert
from image_data import load_data
from news import SHARES, TOKENS, load_news, token
from safetensors.torch import load_file
from small_resnet import small_resnet
from train_mhex_bert import small_bert
from training import Learner

from adapters import MHEX, deep_supervision_loss

pytestmark = pytest.mark.slow

WORDS = {"1": "treaty minister border", "2": "goal match team", "3": "market shares profit", "4": "chip software orbit"}


@pytest.fixture
def news_file(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        rows = [(cls, f"title {i}", f"{WORDS[cls]} text {i}\\again") for i, cls in enumerate("1234" * 25)]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path


def test_news_are_split_once_each_and_padded(news_file):
    news = load_news(news_file)
    texts = [text for part in news.values() for text in part.texts]
    assert len(texts) == len(set(texts)) == 100
    assert {split: len(part) for split, part in news.items()} == {"train": 70, "validation": 15, "test": 15}
    ids, mask, label = news["test"][0]
    assert mask.sum() < TOKENS == len(ids)
    assert torch.equal(mask == 0, ids == token(news["test"], "[PAD]"))
    assert news["test"].words(0)[0] == "[CLS]"
    assert any(word in news["test"].texts[0] for word in WORDS[str(int(label) + 1)].split())
    assert load_news(news_file.parent / "rows.csv")["test"].texts == news["test"].texts
    assert sum(last - first for first, last in SHARES.values()) == pytest.approx(1)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="AG News"):
        load_news(tmp_path)
    (tmp_path / "test.csv").write_text('"7","a","b"\n')
    with pytest.raises(ValueError, match="class from 1 to 4"):
        load_news(tmp_path)


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
def test_all_blocks_are_trained_and_those_that_predict_are_evaluated(mode):
    model = MHEX(small_resnet(10, 1), placement="downsample").double()
    learner = Learner(model, mode)
    images, labels = torch.rand(4, 1, 24, 24, dtype=torch.double), torch.tensor([1, 2, 3, 1])
    model.backbone.eval()  # its norms then do not depend on the batch
    found = learner([images], labels, num_items_in_batch=torch.tensor(8))
    deep = model.deep_forward(images)
    torch.testing.assert_close(found["loss"], deep_supervision_loss(deep, labels, mode) / 2)
    torch.testing.assert_close(found["logits"], deep[-1])
    logits = model.eval()(images)
    found = learner.eval()([images], labels)
    torch.testing.assert_close(found["loss"], torch.nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(found["logits"], logits)


def test_images_train_all_weights_and_the_saved_model_predicts_the_same(tmp_path, capsys):
    out = tmp_path / "run"
    given = ["--limit", "64", "--per-device-train-batch-size", "32", "--num-train-epochs", "2", "--maps", "2"]
    train_mhex.main([*given, "--output-dir", str(out)])
    printed = float(capsys.readouterr().out.split("test accuracy ")[1].split("%")[0])
    torch.manual_seed(0)
    fresh = MHEX(small_resnet(10, 1), placement="downsample")
    learned = MHEX.from_pretrained(out, model=small_resnet(10, 1))
    assert learned.names == fresh.names
    for name in ("backbone.conv1.0.weight", "blocks.0.gate.weight", "blocks.0.head.weight"):
        assert not torch.equal(learned.state_dict()[name], fresh.state_dict()[name])
    test = load_data("digits", "test", limit=64)
    right = [int(learned(image[None]).argmax()) == label for image, label in test]
    assert printed == pytest.approx(100 * sum(right) / len(right), abs=0.05)  # as it is printed
    assert load_file(out / "checkpoint-4" / "model.safetensors").keys() == learned.state_dict().keys()
    assert len(list((out / "class_maps").iterdir())) == 2


def test_texts_learn_with_and_without_mhex(tmp_path, news_file, capsys):
    for epochs, plain in (("6", []), ("8", ["--plain"])):
        out = tmp_path / f"run{len(plain)}"
        given = ["--data", str(news_file), "--num-train-epochs", epochs, "--per-device-train-batch-size", "10", *plain]
        train_mhex_bert.main([*given, "--output-dir", str(out)])
        accuracy = float(capsys.readouterr().out.split("test accuracy ")[1].split("%")[0])
        assert accuracy > 60  # a quarter by chance
    model = MHEX.from_pretrained(tmp_path / "run0", model=small_bert(load_news(news_file)["train"]))
    ids, mask, labels = load_news(news_file)["test"].tensors
    assert (model(ids, attention_mask=mask).argmax(1) == labels).float().mean() > 0.6
