"""`xai-discern explain`: questions with and without an image, what is written, what is refused."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from paths import ROOT
from PIL import Image
from saved_models import SIDE, TEMPLATE, save_image_model, save_text_model
from tiny_tokenizer import WORDS, word_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, BertConfig, BertModel

import xai_discern._explain as command
from captum_ext import (
    CDAM,
    AttentionMap,
    AttentionRollout,
    IntegratedCDAM,
    RelevancePropagation,
    SmoothCDAM,
    TokenAblation,
)
from xai_discern.cli import main

PAGE = (ROOT / "docs" / "answers.md").read_text()


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("image"))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, 2 * SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels


def explain(folder, *arguments):
    main(["explain", *map(str, arguments), "--out", str(folder)])
    return json.loads((folder / "answer.json").read_text("utf-8"))


def test_a_given_answer_is_explained_as_by_the_class(text_model, tmp_path, capsys):
    given = (
        "--model",
        f"transformers:{text_model}",
        "--ask",
        "the cat sat",
        "--answer",
        "a dog",
        "--against",
        "left of",
    )
    facts = explain(tmp_path / "out", *given, "--exclude", "first")
    model = AutoModelForCausalLM.from_pretrained(text_model)
    inputs = word_tokenizer()("the cat sat", return_tensors="pt")
    answers = [[WORDS.index(word) for word in text.split()] for text in ("a dog", "left of")]
    maps = CDAM(model).attribute_answer(inputs, answers[0], answers[1], exclude=["first"])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "scores.npy"), maps.scores[0], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "per_token.npy"), maps.per_token[0], rtol=1e-5, atol=1e-8)
    assert [row["score"] for row in facts["prompt_tokens"]] == pytest.approx(
        maps.scores[0].tolist(), rel=1e-5, abs=1e-8
    )
    assert [row["token"] for row in facts["prompt_tokens"]] == ["the", "cat", "sat"]
    assert [row["excluded"] for row in facts["prompt_tokens"]] == [True, False, False]
    assert facts["answer_tokens"] == [{"id": 5, "token": "a"}, {"id": 7, "token": "dog"}]
    assert facts["against_tokens"] == ["left", "of"]
    assert facts["first_share"] == pytest.approx(float(maps.first_share[0]), rel=1e-5)
    assert (facts["answer"], facts["generated"], facts["chat_template"]) == ("a dog", False, False)
    assert facts["arrays"] == {"scores.npy": [3], "per_token.npy": [2, 3]}
    assert facts["versions"]["transformers"] == transformers.__version__
    said = capsys.readouterr()
    assert "Answer: a dog\nIts tokens: a | dog\n" in said.out
    assert f"excluded: first.\nPage: {tmp_path / 'out' / 'answer.html'}" in said.out
    assert said.err.startswith("Starting torch and transformers ...\nLoading ")
    assert "against" in (tmp_path / "out" / "answer.html").read_text("utf-8")


@pytest.mark.slow
def test_what_is_generated_is_explained_also_against_another_answer(text_model, tmp_path):
    given = ("--model", f"transformers:{text_model}", "--ask", "the cat sat", "--max-new-tokens", "3")
    facts = explain(tmp_path / "out", *given)
    model = AutoModelForCausalLM.from_pretrained(text_model)
    inputs = word_tokenizer()("the cat sat", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, 3:].tolist()
    assert [token["id"] for token in facts["answer_tokens"]] == expected
    assert facts["generated"]
    assert facts["way"] == "the passes of generation"
    facts = explain(tmp_path / "against", *given, "--against", "dog", "--score", "log_prob")
    maps = CDAM(model).attribute_answer(inputs, expected, WORDS.index("dog"), score="log_prob")
    np.testing.assert_allclose(np.load(tmp_path / "against" / "scores.npy"), maps.scores[0], rtol=1e-4, atol=1e-7)
    assert facts["explained"] == "log_prob"


def test_a_chat_template_is_applied_once(tmp_path):
    folder = save_text_model(tmp_path / "chat", TEMPLATE)
    facts = explain(tmp_path / "out", "--model", f"transformers:{folder}", "--ask", "a dog", "--answer", "cat")
    assert [row["token"] for row in facts["prompt_tokens"]] == ["[BOS]", "what", "is", "a", "dog", "the"]
    assert [row["special"] for row in facts["prompt_tokens"]] == [True, *5 * [False]]
    assert facts["chat_template"]


@pytest.mark.slow
def test_an_image_is_shown_as_the_model_saw_it(image_model, tmp_path, photo, monkeypatch):
    path, pixels = photo
    shown = []
    html = command.AnswerMaps.html
    monkeypatch.setattr(
        command.AnswerMaps, "html", lambda maps, images, page: shown.append(images) or html(maps, images, page)
    )
    given = (path, "--model", f"transformers:{image_model}", "--ask", "what is the cat", "--answer", "left dog")
    facts = explain(tmp_path / "out", *given)
    cut = pixels[:, SIDE // 2 : 3 * SIDE // 2] / 255  # the middle, of the height of the model's images
    np.testing.assert_allclose(shown[0][0].permute(1, 2, 0), cut, atol=0.01)
    processor, model = (
        AutoProcessor.from_pretrained(image_model),
        AutoModelForImageTextToText.from_pretrained(image_model),
    )
    inputs = processor(text="<image>\nwhat is the cat", images=Image.open(path), return_tensors="pt")
    maps = CDAM(model).attribute_answer(inputs, "left dog", tokenizer=processor)
    for name, values in (("image_0", maps.images[0][0]), ("image_per_token_0", maps.images_per_token[0][0])):
        np.testing.assert_allclose(np.load(tmp_path / "out" / f"{name}.npy"), values, rtol=1e-4, atol=1e-7)
    assert [row["image"] for row in facts["prompt_tokens"]] == [*9 * [0], *4 * [None]]
    assert facts["arrays"]["image_per_token_0.npy"] == [2, 3, 3]
    share = facts["special_share"]
    np.save(tmp_path / "out" / "image_7.npy", 1)  # somebody else's
    facts = explain(tmp_path / "out", *given, "--words-only")
    assert facts["special_share"] == pytest.approx(share)  # tokens of an image are no special ones, shown or not
    assert set(facts["arrays"]) == {"scores.npy", "per_token.npy"}
    assert {one.name for one in (tmp_path / "out").glob("*.npy")} == {*facts["arrays"], "image_7.npy"}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("cdam", CDAM),
        ("smooth-cdam", SmoothCDAM),
        ("integrated-cdam", IntegratedCDAM),
        ("token-ablation", TokenAblation),
        ("attention", AttentionMap),
        ("relevance", RelevancePropagation),
        ("rollout", AttentionRollout),
    ],
)
def test_each_method_is_the_class_of_its_name(text_model, tmp_path, name, method):
    torch.manual_seed(0)
    given = ("--model", f"transformers:{text_model}", "--ask", "the cat sat", "--answer", "a dog", "--method", name)
    facts = explain(tmp_path / "out", *given)
    assert facts["method"] == method.__name__
    torch.manual_seed(0)
    model, inputs = (
        AutoModelForCausalLM.from_pretrained(text_model),
        word_tokenizer()("the cat sat", return_tensors="pt"),
    )
    maps = method(model).attribute_answer(inputs, "a dog", tokenizer=word_tokenizer())
    np.testing.assert_allclose(np.load(tmp_path / "out" / "scores.npy"), maps.scores[0], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_code_of_the_document_runs_and_its_shapes_are_those_of_the_comments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, scope)
        for name, shape in re.findall(r"^maps\.(\S+)  # \(([\d, ]+)\)", block, re.MULTILINE):
            value = eval(f"maps.{name}", scope)
            assert tuple(value.shape) == tuple(map(int, shape.split(","))), name
            assert value.std() > 0
        if "explain_generation" in block:
            assert scope["maps"].way == "the passes of generation"
    assert (tmp_path / "answer.html").exists()
    assert "<figure>" in scope["page"]
    assert scope["maps"].method == "IntegratedCDAM"


def test_the_document_describes_all_that_is_written(text_model, tmp_path):
    given = ("--model", f"transformers:{text_model}", "--ask", "the cat sat", "--answer", "a dog")
    facts = explain(tmp_path / "out", *given)
    table = PAGE.split("| key of `answer.json` |")[1]
    assert set(facts) == {name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert all(f"`{name}`" in table for row in facts["prompt_tokens"] for name in row)
    assert all(f"`{one.name}`" in PAGE for one in (tmp_path / "out").iterdir())


def stopped(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["explain", *map(str, arguments)])
    return stop.value.code, capsys.readouterr().err


def test_what_cannot_be_explained_says_why(text_model, tmp_path, capsys, photo):
    ask, text = ("--ask", "the cat"), ("--model", f"transformers:{text_model}")
    BertModel(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    (tmp_path / "broken.png").write_text("no image")
    transformers.ViTConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "vit")
    for arguments, code, words in (
        ((photo[0], *text, *ask), 1, "is a llama model, which takes no images. Leave IMAGE out."),
        ((tmp_path / "broken.png", *text, *ask), 1, "cannot identify image file"),
        (("--model", f"transformers:{tmp_path / 'none'}", *ask), 1, "none"),
        (("--model", f"transformers:{tmp_path / 'vit'}", *ask), 1, "is a vit model, which does not answer in words"),
        (("--model", f"transformers:{tmp_path / 'bert'}", *ask), 1, "has no weights for cls."),
        ((*text, *ask, "--answer", "zebra"), 1, "'zebra' in `answer` is not in the tokenizer's vocabulary"),
        ((*text, *ask, "--device", "abacus"), 1, "The device 'abacus' cannot be used"),
        (("--model", "timm:vit", *ask), 2, "expected transformers:NAME or transformers:FOLDER, got 'timm:vit'"),
        (("nowhere.png", *text, *ask), 2, "there is no file 'nowhere.png'"),
        ((*text, *ask, "--max-new-tokens", "0"), 2, "expected a number of at least 1"),
        ((*text, *ask, "--exclude", "last"), 2, "expected first, special or first,special; got 'last'"),
        ((*text, "--ask", " "), 2, "expected some text"),
        ((*text, *ask, "--method", "guess"), 2, "invalid choice: 'guess'"),
    ):
        found = stopped(capsys, *arguments, "--out", tmp_path / "out")
        assert found[0] == code, found
        assert words in found[1]
        assert "Traceback" not in found[1]
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_model_without_a_grid_advises_what_works(image_model, tmp_path, capsys, photo, monkeypatch):
    placing = sys.modules["adapters.prompts.image_tokens"]

    def unknown(*_):
        raise ValueError("No place is known. For the scores of all tokens without maps of images, pass `images=False`.")

    monkeypatch.setattr(placing, "layouts", unknown)
    given = (photo[0], "--model", f"transformers:{image_model}", "--ask", "what is", "--answer", "a")
    code, said = stopped(capsys, *given, "--out", tmp_path / "out")
    assert code == 1
    assert "For the scores of all tokens without maps of images, pass --words-only." in said
    assert explain(tmp_path / "out", *given, "--words-only")["answer"] == "a"
    assert "The page has no map of the image." in capsys.readouterr().out


def test_the_other_command_is_one_of_its_parts(monkeypatch, capsys):
    import xai_compare.cli

    given = []
    monkeypatch.setattr(xai_compare.cli, "main", given.append)
    main(["compare", "--list", "--model", "digits"])
    assert given == [["--list", "--model", "digits"]]
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    assert "explain" in listed
    assert "compare" in listed


def test_a_wrong_option_and_the_first_line_need_no_torch():
    code = "import sys, xai_discern.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
