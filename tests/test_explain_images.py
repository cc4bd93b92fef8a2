"""`xai-discern explain` for classes, concepts and texts: numbers against the classes called by hand, and refusals."""

import json
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from explaining import explain, stopped
from paths import ROOT
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from skimage import data
from timm.models import save_for_hf
from tiny_tokenizer import WORDS, word_tokenizer
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from adapters import reshape_transform_for, target_layer_for
from captum_ext import CDAM, AttentionMap, ConceptTarget, IntegratedCDAM, TextTarget
from xai_discern import _images
from xai_discern._picture import robust_scale
from xai_discern._targets import of_concept
from xai_discern.cli import main

PAGE = (ROOT / "docs" / "explain.md").read_text()
FRUIT = ["apple", "banana, plantain", "orange", "lemon"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A ViT of four classes, saved by timm with their names."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4).eval()
    torch.nn.init.normal_(model.head.weight)
    folder = tmp_path_factory.mktemp("fruit")
    save_for_hf(model, folder, model_config={"label_names": FRUIT})
    return model, folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.chelsea()).save(folder / "cat.png")
    Image.fromarray(data.astronaut()).save(folder / "woman.png")
    return folder


def save_texts(folder):
    """Options that explain a text by a small BERT."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder / "texts")
    word_tokenizer().save_pretrained(folder / "texts")
    (folder / "texts.txt").write_text("the cat")
    return "--text-file", folder / "texts.txt", "--model", folder / "texts"


def seen(model, path):
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return transform(Image.open(path).convert("RGB"))[None]


@pytest.mark.slow
def test_classes_by_name_are_those_of_the_class_called_by_hand(model, photos, tmp_path, capsys):
    network, folder = model
    facts = explain(tmp_path, photos / "cat.png", "--model", folder, "--class", "Plantain", "--class", "0")
    x = seen(network, photos / "cat.png")
    with torch.no_grad():
        chances = network(x).softmax(1)[0]
    (image,) = facts["images"]
    assert [row["class"] for row in image["top"]] == chances.argsort(descending=True).tolist()
    assert [row["probability"] for row in image["top"]] == pytest.approx(chances.sort(descending=True)[0].tolist())
    assert {row["class"]: row["name"] for row in image["top"]} == dict(enumerate(FRUIT))
    for found, number in zip(image["maps"], (1, 0), strict=True):
        expected = CDAM(network).attribute(x, number)[0, 0]
        largest = float(expected.abs().max())
        np.testing.assert_allclose(np.load(tmp_path / found["array"]), expected, rtol=0, atol=1e-5 * largest)
        assert found["target"] == {"kind": "class", "class": number, "name": FRUIT[number]}
        assert found["sum"] == pytest.approx(float(expected.sum()), rel=1e-4)
        assert found["positive_share"] == pytest.approx(float(expected.clamp(min=0).sum() / expected.abs().sum()))
        assert found["largest"] == list(np.unravel_index(expected.argmax(), expected.shape))
    assert facts["model"]["weights"] == "pretrained"
    assert Image.open(image["picture"]).size[0] > 900
    assert "RANDOM" not in capsys.readouterr().out


@pytest.mark.slow
def test_the_predicted_class_another_method_and_why_not_another_class(model, photos, tmp_path):
    network, folder = model
    x = seen(network, photos / "woman.png")
    best = int(network(x).argmax())
    other = (best + 1) % 4
    given = (
        photos / "woman.png",
        "--model",
        folder,
        "--vs",
        FRUIT[other],
        "--method",
        "integrated-cdam,gradcam,attention",
    )
    ours, cam, attention = explain(tmp_path, *given)["images"][0]["maps"]
    np.testing.assert_allclose(
        np.load(tmp_path / attention["array"]), AttentionMap(network).attribute(x, 0)[0, 0], rtol=1e-3
    )
    maps = [IntegratedCDAM(network).attribute(x, number)[0, 0] for number in (best, other)]
    np.testing.assert_allclose(np.load(tmp_path / ours["array"]), maps[0] - maps[1], rtol=1e-3, atol=1e-7)
    assert (ours["target"]["class"], ours["target"]["against"]) == (best, other)
    with GradCAM(network, [target_layer_for(network)], reshape_transform_for(network)) as grad_cam:
        difference = lambda output: output[best] - output[other]  # noqa: E731
        expected = grad_cam(x, [difference])[0]
    np.testing.assert_allclose(np.load(tmp_path / cam["array"]), expected, atol=1e-5)
    assert cam["shape"] == [224, 224]
    with GradCAM(network, [target_layer_for(network)], reshape_transform_for(network)) as grad_cam:
        assert np.abs(grad_cam(x, [ClassifierOutputTarget(best)])[0] - expected).max() > 0.01


@pytest.mark.slow
def test_a_concept_is_what_a_folder_shares(model, photos, tmp_path):
    network, folder = model
    facts = explain(tmp_path, photos / "cat.png", "--model", folder, "--concept", photos)
    examples = torch.cat([seen(network, photos / name) for name in ("cat.png", "woman.png")])
    concept = ConceptTarget.from_examples(network, examples, similarity="cosine")
    (found,) = facts["images"][0]["maps"]
    expected = CDAM(network).attribute(examples[:1], concept)[0, 0]
    np.testing.assert_allclose(np.load(tmp_path / found["array"]), expected, rtol=1e-3, atol=1e-8)
    assert (found["target"]["kind"], found["target"]["examples"]) == ("concept", 2)


@pytest.mark.slow
def test_features_of_a_model_without_a_head_are_no_classes(photos, tmp_path, capsys):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    save_for_hf(network, tmp_path / "bare")
    given = (photos / "cat.png", "--model", tmp_path / "bare", "--out", tmp_path / "out")
    for further in ((), ("--class", "3")):
        code, said = stopped(capsys, "explain", *given, *further)
        assert code == 1
        assert "its 192 outputs are features, not classes. Explain a concept (--concept FOLDER" in said
    main([*map(str, ("explain", *given, "--concept", photos))])
    (image,) = json.loads((tmp_path / "out" / "explanation.json").read_text())["images"]
    assert (image["top"], len(image["maps"])) == ([], 1)


@pytest.mark.slow
def test_several_labels_at_once_have_a_probability_each(photos, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = ViTConfig(**sizes, image_size=32, num_labels=3, problem_type="multi_label_classification")
    network = ViTForImageClassification(config).eval()
    network.classifier.bias.data = torch.tensor([2.0, 1.0, -1.0])
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    network.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    facts = explain(tmp_path / "out", photos / "cat.png", "--model", tmp_path / "vit")
    x = processor(images=Image.open(photos / "cat.png"), return_tensors="pt")["pixel_values"]
    expected = network(x).logits[0].sigmoid().sort(descending=True).values.tolist()
    assert [row["probability"] for row in facts["images"][0]["top"]] == pytest.approx(expected, abs=1e-5)
    assert sum(expected) > 1.2


@pytest.mark.slow
def test_maps_in_the_folder_of_the_images_are_no_images(model, photos, tmp_path):
    Image.open(photos / "cat.png").save(tmp_path / "cat.png")
    for classes in ("apple", "orange"):  # the second leaves the maps of the first where they are
        facts = explain(tmp_path, tmp_path, "--model", model[1], "--class", classes)
        assert [one["file"] for one in facts["images"]] == [str(tmp_path / "cat.png")]
    assert {one.name for one in tmp_path.glob("*.npy")} == {"cat.cdam.0.npy", "cat.cdam.2.npy"}


@pytest.mark.slow
def test_a_damaged_image_costs_itself_only(model, photos, tmp_path, capsys):
    _, folder = model
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        Image.open(photos / "cat.png").save(tmp_path / str(number) / "same.png")
    (tmp_path / "1" / "broken.png").write_text("no image")
    facts = explain(tmp_path / "out", tmp_path / "1", tmp_path / "2", "--model", folder)
    assert [("error" in one, one["file"][-10:]) for one in facts["images"]] == [
        *((True, "broken.png"), (False, "1/same.png"), (False, "2/same.png"))
    ]
    assert {one.name for one in (tmp_path / "out").glob("*.png")} == {"same.maps.png", "same-2.maps.png"}
    assert "broken.png: skipped: cannot identify image file" in capsys.readouterr().out


@pytest.mark.slow
def test_a_photograph_that_lies_on_its_side_is_turned_upright(model, photos, tmp_path):
    _, folder = model
    turned = Image.Exif()
    turned[0x0112] = 6  # as a phone that was held upright writes it
    Image.open(photos / "cat.png").convert("RGB").rotate(90, expand=True).save(tmp_path / "phone.png", exif=turned)
    facts = explain(tmp_path / "out", photos / "cat.png", tmp_path / "phone.png", "--model", folder, "--class", "0")
    upright, phone = (np.load(tmp_path / "out" / one["maps"][0]["array"]) for one in facts["images"])
    np.testing.assert_allclose(phone, upright, rtol=1e-5)
    assert np.abs(np.rot90(upright) - upright).max() > 0.1 * np.abs(upright).max()


@pytest.mark.slow
def test_no_two_results_have_one_name(model, photos, tmp_path):
    _, folder = model
    for name in ("red!", "red?"):
        (tmp_path / name).mkdir()
        Image.open(photos / ("cat.png" if name == "red!" else "woman.png")).save(tmp_path / name / "1.png")
    concepts = ("--concept", tmp_path / "red!", "--concept", tmp_path / "red?")
    methods = ("--method", "one=cdam,other=attention,cdam")
    (image,) = explain(tmp_path / "out", photos / "cat.png", "--model", folder, "--class", "0", *methods)["images"]
    assert len({one["array"] for one in image["maps"]}) == 3
    (image,) = explain(tmp_path / "out", photos / "cat.png", "--model", folder, *concepts)["images"]
    first, second = (np.load(tmp_path / "out" / one["array"]) for one in image["maps"])
    assert np.abs(second).max() > 100 * np.abs(first).max()  # nearness to itself has no gradient
    assert [one["target"]["name"] for one in image["maps"]] == ["red!", "red?"]


@pytest.mark.slow
def test_concepts_and_texts_are_made_once_for_all_images(model, photos, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(_images, "of_concept", lambda *given: made.append(given) or of_concept(*given))
    explain(tmp_path, photos, "--model", model[1], "--concept", photos)
    assert len(made) == 1


@pytest.mark.slow
def test_a_single_output_has_no_probability(photos, tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    network = ViTForImageClassification(ViTConfig(**sizes, image_size=32, num_labels=1)).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    network.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    (image,) = explain(tmp_path / "out", photos / "cat.png", "--model", tmp_path / "vit")["images"]
    value = network(processor(images=Image.open(photos / "cat.png"), return_tensors="pt")["pixel_values"]).logits.item()
    assert image["top"] == [{"class": 0, "name": "LABEL_0", "output": pytest.approx(value, rel=1e-4)}]
    assert f"{value:.3g}  LABEL_0" in capsys.readouterr().out


@pytest.mark.slow
def test_what_was_explained_before_a_stop_is_kept(model, photos, tmp_path, monkeypatch, capsys):
    explained = _images._Session.explained

    def stop(session, file, name):
        if name == "woman":
            raise KeyboardInterrupt
        return explained(session, file, name)

    monkeypatch.setattr(_images._Session, "explained", stop)
    assert stopped(capsys, "explain", photos, "--model", model[1], "--out", tmp_path)[0] == 130
    facts = json.loads((tmp_path / "explanation.json").read_text())
    assert [one["file"][-7:] for one in facts["images"]] == ["cat.png"]


@pytest.mark.slow
def test_random_weights_are_said_loudly_and_names_are_those_of_imagenet(photos, tmp_path, capsys):
    given = (photos / "cat.png", "--model", "timm:deit_tiny_patch16_224", "--class", "tabby", "--top", "2")
    facts = explain(tmp_path, *given)
    assert facts["model"] == {"name": "timm:deit_tiny_patch16_224", "weights": "random", "classes": 1000}
    assert len(facts["images"][0]["top"]) == 2
    assert facts["images"][0]["maps"][0]["target"] == {"kind": "class", "class": 281, "name": "tabby, tabby cat"}
    assert capsys.readouterr().out.startswith(
        "RANDOM WEIGHTS: these maps say nothing of the image. For trained weights"
    )


@pytest.mark.slow
def test_a_text_is_compared_with_an_image_and_with_another_text(photos, tmp_path):
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {"vocab_size": len(WORDS), "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = sizes | {"image_size": 24, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    pixels = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = CLIPProcessor(pixels, tokenizer)
    clip.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    given = (photos / "cat.png", "--model", f"transformers:{tmp_path / 'clip'}", "--text", "the cat", "--vs", "a dog")
    (image,) = explain(tmp_path / "out", *given)["images"]
    x = pixels(images=Image.open(photos / "cat.png"), return_tensors="pt")["pixel_values"]
    target = TextTarget(clip, processor, "the cat", "a dog")
    expected = CDAM(clip.get_image_features).attribute(x, target)[0, 0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / image["maps"][0]["array"]), expected, rtol=1e-3, atol=1e-8)
    with torch.no_grad():
        embedding = F.normalize(clip.get_image_features(x).pooler_output, dim=1)[0]
        words = tokenizer(["the cat", "a dog"], return_tensors="pt")
        near = F.normalize(clip.get_text_features(**words).pooler_output, dim=1) @ embedding
    (top,) = image["top"]
    assert top == {"name": '"the cat", not "a dog"', "similarity": pytest.approx(float(near[0] - near[1]), abs=1e-6)}


def test_a_single_pixel_does_not_set_the_scale():
    maps = torch.linspace(-1, 1, 400).reshape(1, 20, 20)
    spiked = maps.clone()
    spiked[0, 3, 3] = 1000.0
    assert robust_scale(spiked) == pytest.approx(robust_scale(maps), rel=0.02)
    assert robust_scale(torch.eye(20)[None] * torch.tensor([0.0] * 19 + [5.0])) == 5.0  # where most are zero


@pytest.mark.slow
def test_the_document_describes_all_that_is_written(model, photos, tmp_path):
    facts = explain(tmp_path / "a", photos / "cat.png", "--model", model[1])
    texts = explain(tmp_path / "b", *save_texts(tmp_path))
    keys = set(re.findall(r"`(\w+)`", PAGE.split("| key of `explanation.json` |")[1]))

    def names(value):
        if isinstance(value, dict):
            return set(value).union(*map(names, value.values())) - {"python", "xai-discern", "torch", "captum"}
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    assert names(facts) | names(texts) <= keys
    assert facts["schema"] in PAGE


@pytest.mark.slow
def test_what_cannot_be_explained_says_what_to_do(model, photos, tmp_path, capsys):
    cat, fruit = photos / "cat.png", ("--model", model[1], "--out", tmp_path / "out")
    config = ViTConfig(hidden_size=16, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, image_size=32)
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor().save_pretrained(tmp_path / "vit")
    BertModel(BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    (tmp_path / "none").mkdir()
    (tmp_path / "texts.txt").write_text("\n")
    (tmp_path / "words.txt").write_text("the cat\n")
    resnet = ("--model", "torchvision:resnet18", "--out", tmp_path / "out")
    for arguments, code, words in (
        ((cat, *fruit, "--class", "aple"), 1, "None of the model's 4 classes is called 'aple' (close: apple)."),
        ((cat, *fruit, "--class", "7"), 1, "Expected a class from 0 to 3, got 7."),
        ((cat, *fruit, "--class", "apple", "--vs", "0"), 1, "Expected another class for --vs"),
        ((cat, *fruit, "--concept", photos, "--method", "gradcam"), 1, "explains classes, not concept"),
        ((cat, *fruit, "--method", "gradcan"), 1, "Unknown method 'gradcan' (close: gradcam"),
        ((tmp_path / "none", *fruit), 1, "There is no image in the folder"),
        ((cat, *resnet), 1, "Here: --method gradcam"),
        ((cat, "--model", "timm:vit_tiny_patch16_22"), 1, "(close: vit_tiny_patch16_224"),
        ((cat, "--model", f"transformers:{tmp_path / 'vit'}"), 1, "has no weights for classifier."),
        ((cat, "--model", tmp_path / "none"), 1, "has no config.json"),
        ((cat, "--model", tmp_path / "bert"), 1, "is a bert model, which does not classify images."),
        (("--text-file", tmp_path / "words.txt", "--model", tmp_path / "vit"), 1, "which does not classify texts."),
        ((cat, *fruit, "--concept", photos, "--vs", "apple"), 2, "--vs is for classes and texts"),
        ((cat, *fruit, "--text", "a dog"), 1, ""),
        (("--text-file", tmp_path / "texts.txt", *fruit), 1, "Expected a text in each line"),
        ((cat, "--model", "resnet18"), 2, "`xai-discern models resnet18` finds names"),
        ((cat, *fruit, "--metod", "cdam"), 2, "unrecognized arguments: --metod cdam (close: --method"),
        ((cat, *fruit, "--answer", "yes"), 2, "--answer is for answers of language models: give --ask, too"),
        ((cat, *fruit, "--ask", "what?", "--class", "0"), 2, "--class is for classes and concepts"),
        ((cat, *fruit, "--text", "a", "--class", "0"), 2, "--text is for models that compare images with texts"),
        (fruit, 2, "expected images, or --text-file, or --ask"),
        ((cat, *fruit, "--text-file", tmp_path / "texts.txt"), 2, "--text-file takes no images"),
    ):
        found = stopped(capsys, "explain", *arguments)
        assert found[0] == code, found
        assert words in found[1]
        assert "Traceback" not in found[1]


@pytest.mark.slow
def test_what_the_message_about_a_network_without_attention_advises_works(photos, tmp_path):
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet.pt")
    given = (photos / "cat.png", "--model", "torchvision:resnet18", "--checkpoint", tmp_path / "resnet.pt")
    facts = explain(tmp_path / "out", *given, "--method", "gradcam", "--class", "tabby")
    (found,) = facts["images"][0]["maps"]
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    with GradCAM(network, [network.layer4[-1]]) as cam:
        expected = cam(transform(Image.open(photos / "cat.png"))[None], [ClassifierOutputTarget(281)])[0]
    np.testing.assert_allclose(np.load(tmp_path / "out" / found["array"]), expected, atol=1e-4)
    assert expected.max() > 0.5
    assert facts["model"]["weights"] == str(tmp_path / "resnet.pt")
