"""`xai-compare` on questions and answers: numbers found again by hand, kinds of data, what is refused."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from contracts import left_as_found
from paths import ROOT
from PIL import Image
from saved_models import PATCH, SIDE, TEMPLATE, save_image_model, save_text_model
from tiny_tokenizer import WORDS, word_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from captum_ext import CDAM, RelevancePropagation
from xai_compare import compare
from xai_compare._run_folder import RunFolder
from xai_compare.cli import main
from xai_compare.questions import questions_in
from xai_compare.questions.measures import MEASURES, Relevance
from xai_compare.questions.prompt import Prompt

FEW = {"resamples": 100, "gallery": 2}
QUESTION, ANSWER = "the cat sat left", "a dog"


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("text"), TEMPLATE)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory):
    return save_image_model(tmp_path_factory.mktemp("image"))


@pytest.fixture
def pictures(tmp_path):
    """A folder of square pictures with questions about them."""
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    rows = "".join(f'{n}.png,{QUESTION},{ANSWER},,"0 0 12 {SIDE}"\n' for n in range(3))
    (tmp_path / "questions.csv").write_text(f"file,question,answer,against,box\n{rows}")
    return tmp_path


def probability(model, inputs, answer):
    """Of the answer's tokens, each after the ones before, one pass for each."""
    logs = []
    for number, token in enumerate(answer):
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer[:number]], dtype=torch.long)], 1)
        further = {name: value for name, value in inputs.items() if name == "pixel_values"}
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **further).logits[0, -1]
        logs.append(float(logits.log_softmax(-1)[token]))
    return float(np.exp(np.mean(logs)))


def area(values):
    return float(np.mean([(a + b) / 2 for a, b in itertools.pairwise(values)]))


def scores(run, sample=0):
    table = run.scores()
    return table[table["sample"] == sample].set_index(["method", "metric"])["score"].to_dict()


@pytest.mark.slow
def test_words_that_are_taken_away_and_added_give_the_probabilities_of_shorter_prompts(text_model, tmp_path):
    options = {"word-deletion": {"steps": 4}, "word-insertion": {"steps": 4}}
    data = [{"question": QUESTION, "answer": ANSWER, "against": "of"}]
    run = compare(
        f"transformers:{text_model}", data, out=tmp_path, methods=["cdam", "relevance"], options=options, **FEW
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(text_model).eval(), word_tokenizer()
    message = [{"role": "user", "content": QUESTION}]
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    before, words = ids["input_ids"][0].tolist()[:3], QUESTION.split()
    assert ids["input_ids"][0].tolist() == [*before, *map(WORDS.index, words), WORDS.index("the")]
    answer = [WORDS.index(word) for word in ANSWER.split()]
    for name, method in {"cdam": CDAM, "relevance": RelevancePropagation}.items():
        maps = method(model).attribute_answer(dict(ids), ANSWER, "of", tokenizer)
        order = maps.scores[0, 3:7].argsort(descending=True).tolist()
        found = {}
        for kind, gone in {
            "deletion": [order[:count] for count in range(5)],
            "insertion": [order[count:] for count in range(5)],
        }.items():
            left = [[word for place, word in enumerate(words) if place not in part] for part in gone]
            prompts = [[*before, *map(WORDS.index, part), WORDS.index("the")] for part in left]
            found[kind] = area([probability(model, {"input_ids": torch.tensor([ids])}, answer) for ids in prompts])
        assert scores(run)[name, "word-deletion"] == pytest.approx(found["deletion"], rel=1e-5)
        assert scores(run)[name, "word-insertion"] == pytest.approx(found["insertion"], rel=1e-5)


@pytest.mark.slow
def test_places_of_the_image_get_its_mean_colour_and_the_box_is_counted(image_model, pictures, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(image_model).eval()
    processor = AutoProcessor.from_pretrained(image_model)
    with torch.no_grad():  # transformers hooks its vision models in their first pass
        model(**processor(text="<image>", images=Image.open(pictures / "0.png"), return_tensors="pt"))
    names = ["patch-deletion", "patch-insertion", "relevance-in-box"]
    with left_as_found(model):
        run = compare(
            model,
            pictures,
            out=tmp_path / "run",
            processor=processor,
            methods=["cdam"],
            metrics=names,
            options={"patch-deletion": {"steps": 9}, "patch-insertion": {"steps": 9}},
            **FEW,
        )
    answer = [WORDS.index(word) for word in ANSWER.split()]
    for sample in range(3):
        picture = Image.open(pictures / f"{sample}.png")
        inputs = dict(processor(text=f"<image>\n{QUESTION}", images=picture, return_tensors="pt"))
        heat = CDAM(model).attribute_answer(inputs, ANSWER, tokenizer=processor).images[0][0]
        order = heat.flatten().argsort(descending=True).tolist()
        mean = inputs["pixel_values"].mean((2, 3), keepdim=True)
        values = {True: [], False: []}
        for kept in values:
            for count in range(10):
                pixels = inputs["pixel_values"].clone()
                for place in order[count:] if kept else order[:count]:
                    y, x = PATCH * (place // 3), PATCH * (place % 3)
                    pixels[:, :, y : y + PATCH, x : x + PATCH] = mean
                values[kept].append(probability(model, {**inputs, "pixel_values": pixels}, answer))
        found = scores(run, sample)
        assert found["cdam", "patch-deletion"] == pytest.approx(area(values[False]), rel=1e-5)
        assert found["cdam", "patch-insertion"] == pytest.approx(area(values[True]), rel=1e-5)
        positive = heat.clamp(min=0)
        inside = (positive[:, 0] + positive[:, 1] / 2).sum() / positive.sum()  # 12 of 24 pixels: a column and a half
        assert found["cdam", "relevance-in-box"] == pytest.approx(float(inside), rel=1e-5)


def test_a_picture_in_tiles_is_painted_before_the_processor(monkeypatch):
    import xai_compare.questions.prompt as prompts

    seen = []
    monkeypatch.setattr(prompts, "asked", lambda _, __, question, image: (seen.append(np.array(image)) or {}, False))
    monkeypatch.setattr(prompts, "probability", lambda *_: 0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    from xai_compare.questions.data import AskedSample

    sample = AskedSample(0, "one", "what", "a", picture=Image.fromarray(pixels))
    prompt = Prompt(None, None, sample, {"pixel_values": torch.zeros(4, 3, 8, 8)}, [1], [])
    assert prompt.without_places([(0, 2), (1, 0)], (2, 3)) == 0.5
    expected = pixels.copy()
    mean = np.round(pixels.reshape(-1, 3).mean(0)).astype(np.uint8)
    expected[:3, 6:], expected[3:, :3] = mean, mean
    assert np.array_equal(seen[0], expected)


def test_a_map_that_says_nothing_has_no_curve():
    flat = Relevance(torch.ones(4), torch.ones(2, 2))
    prompt = Prompt(None, None, None, {}, [1], [[0], [1]])
    for name in ("word-deletion", "word-insertion", "patch-deletion", "patch-insertion"):
        with pytest.raises(ValueError, match="have the same score"):
            MEASURES[name].score(prompt, flat, 2)


@pytest.mark.slow
def test_tables_folders_and_lists_are_the_same_questions(text_model, tmp_path):
    rows = [{"question": "what is", "answer": "a"}, {"question": "is the cat", "answer": "dog"}]
    table = pd.DataFrame(rows)
    (tmp_path / "folder").mkdir()
    table.to_csv(tmp_path / "folder" / "questions.csv", index=False)
    table.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "rows.parquet")
    given = {
        "list": rows,
        "table": table,
        "folder": tmp_path / "folder",
        "jsonl": tmp_path / "rows.jsonl",
        "parquet": str(tmp_path / "rows.parquet"),
    }
    found = {}
    for name, data in given.items():
        run = compare(f"transformers:{text_model}", data, out=tmp_path / f"of {name}", methods=["cdam"], **FEW)
        found[name] = run.scores().drop(columns="seconds")
        assert set(found[name].metric) == {"word-deletion", "word-insertion"}
    for table in found.values():
        pd.testing.assert_frame_equal(table, found["list"])


@pytest.mark.slow
def test_a_run_grows_and_resumes_and_its_report_has_the_answers(image_model, pictures, capsys):
    out = pictures / "run"
    given = ["--model", f"transformers:{image_model}", "--data", str(pictures), "--out", str(out), "--resamples", "100"]
    main([*given, "--methods", "cdam"])
    main([*given, "--methods", "cdam,random"])
    second = json.loads((out / "run.json").read_text())
    assert list(second["methods"]) == ["cdam", "random"]
    assert second["settings"]["targets"] == "answer"
    assert second["settings"]["metrics"] == ["word-deletion", "word-insertion", "patch-deletion", "patch-insertion"]
    page = (out / "report.html").read_text()
    assert json.dumps(f"answer “{ANSWER}”")[1:-1] in page
    assert "0.png: the cat sat left" in page
    assert "3 samples, 24 scores, 0 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_code_on_the_page_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "compare-answers.md").read_text(), re.DOTALL)
    scope = {}
    exec(block, scope)
    assert len(scope["results"].scores()) == 4


@pytest.mark.slow
def test_the_metrics_are_listed(capsys):
    main(["--list"])
    assert "word-deletion" in capsys.readouterr().out.partition("Metrics of answers")[2]


REFUSED = {
    "a method without answers": ({"methods": ["gradcam"]}, ValueError, "methods that explain answers.*got gradcam"),
    "a metric of images": ({"metrics": ["compactness"]}, ValueError, "Of answers to questions: word-deletion"),
    "an image where there is none": ({"metrics": ["patch-deletion"]}, ValueError, "the question has no image"),
    "steps": ({"options": {"word-deletion": {"steps": 0}}}, ValueError, "at least 1, got 0"),
    "another option": ({"options": {"word-deletion": {"size": 3}}}, ValueError, "has one option, steps; got size"),
    "kept maps": ({"save_maps": True}, ValueError, "Maps of answers are not kept"),
    "an answer outside": ({"data": [{"question": "what", "answer": "zebra"}]}, ValueError, "vocabulary"),
    "no question": ({"data": [{"question": 3, "answer": "a"}]}, ValueError, "expected a text as `question`, got 3"),
    "images": ({"data": torch.rand(2, 3, 4, 4), "targets": "answer"}, ValueError, "needs data with question and"),
    "another model": ({"model": "digits"}, ValueError, "Expected a model that answers questions"),
    "no processor": ({"model": torch.nn.Linear(2, 2)}, ValueError, "Expected `processor`"),
    "metric objects": ({"metrics": {"mine": object()}}, TypeError, "names of metrics for questions"),
}


@pytest.mark.parametrize(("given", "kind", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_question_is_refused(text_model, tmp_path, given, kind, said):
    asked = {"model": f"transformers:{text_model}", "data": [{"question": "what is", "answer": "a"}], **FEW} | given
    with pytest.raises(kind, match=said):
        compare(asked.pop("model"), asked.pop("data"), out=tmp_path / "run", **({"methods": ["cdam"]} | asked))


@pytest.mark.slow
def test_a_question_that_cannot_be_asked_costs_itself_only(text_model, tmp_path):
    rows = [{"question": "what is", "answer": "a"}, {"question": "what", "answer": "zebra"}]
    run = compare(f"transformers:{text_model}", rows, out=tmp_path / "run", methods=["cdam"], **FEW)
    assert set(run.scores()["sample"]) == {0}
    assert "not in the tokenizer's vocabulary" in run.skipped().error.iloc[0]


def test_pictures_of_any_depth_and_mode_keep_their_light(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (4, 6), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = Image.fromarray(np.rot90(grey).copy())
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray((grey / 255).astype(np.float32)).save(tmp_path / "floats.tif")
    names = ["turned.png", "deep.png", "rgba.png", "floats.tif"]
    rows = pd.DataFrame([{"file": str(tmp_path / name), "question": "what", "answer": "a"} for name in names])
    for index, name in enumerate(names):
        found = questions_in(rows).read(index).picture
        assert found.mode == "RGB", name
        assert np.array_equal(np.array(found)[..., 1], grey), name
    np.save(tmp_path / "many.npy", np.zeros((5, 4, 4)))
    with pytest.raises(ValueError, match="expected a picture of grey or colours"):
        questions_in([{"image": tmp_path / "many.npy", "question": "what", "answer": "a"}]).read(0)


@pytest.mark.slow
def test_questions_with_and_without_images_and_files_that_cannot_be_read_stand_side_by_side(
    image_model, pictures, tmp_path
):
    (pictures / "broken.png").write_bytes(b"no picture")
    rows = [("0.png", QUESTION), ("none.png", "what"), ("broken.png", "what is"), (None, QUESTION)]
    table = pd.DataFrame([(file, text, "a") for file, text in rows], columns=["file", "question", "answer"])
    table.to_csv(pictures / "rows.csv", index=False)
    run = compare(
        f"transformers:{image_model}", pictures / "rows.csv", out=tmp_path / "run", methods=["cdam", "random"], **FEW
    )
    found = run.scores().set_index(["sample", "method", "metric"])
    assert set(found.index.unique("sample")) == {0, 3}
    assert found.loc[0].error.isna().all()
    words = found.loc[3, "cdam", "word-deletion"]
    assert words.error is None or np.isnan(words.error)
    assert 0 < words.score < 1  # all words gone, the token that begins a text stands alone
    assert "the question has no image" in found.loc[3, "cdam", "patch-deletion"].error
    shown = {picture["name"] for picture in RunFolder(tmp_path / "run").pictures()}
    assert shown == {f"0.png: {QUESTION}"}
    skipped = run.skipped().set_index("sample")
    assert skipped.name.to_dict() == {1: "none.png: what", 2: "broken.png: what is"}
