"""What the page explains, without the page: numbers, limits, files; and the command that serves it."""

import html
import io
import json
import re
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from apps import png, saved_clip, scene_png
from explaining import stopped
from PIL import Image
from timm.models import save_for_hf

from captum_ext import CDAM, ConceptTarget, ContrastTarget, IntegratedCDAM, TextTarget, check
from xai_compare import digit_vit
from xai_discern import _app_picture, _app_session
from xai_discern._app_models import FIRST, Models, forwards
from xai_discern._app_picture import accepted
from xai_discern._app_result import result_html
from xai_discern._app_samples import samples
from xai_discern._app_session import Wanted, checked, concept_of, download, explain, see
from xai_discern.app import build, serve


@pytest.fixture(scope="module")
def digits():
    return Models(["digits"])["digits"]


@pytest.fixture(scope="module")
def scene(digits):
    data, _ = scene_png()
    return see(digits, accepted("my scene.png", data))


def test_the_top_classes_and_maps_are_those_of_the_classes_called_by_hand(scene):
    model = digit_vit.load()
    x = torch.as_tensor(np.asarray(scene.upload.opened()) / np.float32(255))[None, None]
    chances = model(x).softmax(1)[0]
    assert [row["class"] for row in scene.top] == chances.argsort(descending=True)[:5].tolist()
    assert scene.top[0]["probability"] == pytest.approx(float(chances.max()), abs=1e-5)
    assert sorted(row["class"] for row in scene.top[:2]) == sorted(scene_png()[1])
    a, b = (row["class"] for row in scene.top[:2])
    found = explain(scene, Wanted((a, b), methods=("cdam", "integrated-cdam")))
    for name, make in (("cdam", CDAM), ("integrated-cdam", IntegratedCDAM)):
        for at, number in enumerate((a, b)):
            expected = make(model).attribute(x, number)[0, 0]
            torch.testing.assert_close(found.maps.maps[name][at], expected, rtol=1e-3, atol=1e-6)
    (contrast,) = explain(scene, Wanted((a, b), contrast=True)).maps.maps["cdam"]
    torch.testing.assert_close(contrast, CDAM(model).attribute(x, ContrastTarget(a, b))[0, 0], rtol=1e-3, atol=1e-6)


def test_a_concept_is_what_its_pictures_share(digits, scene):
    pictures = [accepted(f"{i}.png", png(np.full((48, 48), 40 * i, np.uint8))) for i in (1, 3)]
    found = explain(scene, Wanted((), concept=concept_of(digits, "grey", pictures)))
    examples = torch.stack([torch.full((1, 48, 48), 40 * i / 255) for i in (1, 3)])
    model = digit_vit.load()
    target = ConceptTarget.from_examples(model, examples, similarity="cosine")
    expected = CDAM(model).attribute(scene.x, target)[0, 0]
    torch.testing.assert_close(found.maps.maps["cdam"][0], expected, rtol=1e-3, atol=1e-6)
    for name, given, words in (("", pictures, "Expected a name"), ("grey", [], "got 0"), ("grey", pictures * 11, "22")):
        with pytest.raises(ValueError, match=words):
            concept_of(digits, name, given)


@pytest.mark.slow
def test_texts_are_compared_by_models_that_do(tmp_path):
    clip, processor = saved_clip(tmp_path)
    loaded = Models([str(tmp_path)])[str(tmp_path)]
    assert loaded.compares_texts
    assert "gradcam" not in loaded.methods
    upload = accepted("photo.png", png())
    seen = see(loaded, upload)
    assert seen.classes == []
    found = explain(seen, Wanted(texts=("the cat", "a dog"), contrast=True))
    x = processor(images=upload.opened(), return_tensors="pt")["pixel_values"]
    expected = CDAM(clip.get_image_features).attribute(x, TextTarget(clip, processor, "the cat", "a dog"))[0, 0]
    torch.testing.assert_close(found.maps.maps["cdam"][0], expected, rtol=1e-3, atol=1e-7)
    assert [row["name"] for row in found.maps.top] == ['"the cat", not "a dog"']
    (verdict,) = checked(found)
    assert verdict["verdict"] in ("passes", "doubtful", "fails"), verdict
    several = explain(seen, Wanted(texts=("the cat", "a dog", "the Cat!"), contrast=True))
    rows = json.loads(download(several, "json")[1])["images"][0]["maps"]
    with zipfile.ZipFile(io.BytesIO(download(several, "arrays")[1])) as archive:
        saved = [np.load(io.BytesIO(archive.read(row["array"]))) for row in rows]
    assert len({row["array"] for row in rows}) == 2  # two contrasts of one text
    np.testing.assert_allclose(saved, several.maps.maps["cdam"])
    with pytest.raises(ValueError, match="Write a text"):
        explain(seen, Wanted())


@pytest.mark.slow
def test_a_map_of_one_of_two_branches_says_so():
    loaded = Models(["timm:crossvit_tiny_240"])["timm:crossvit_tiny_240"]
    found = explain(see(loaded, accepted("photo.png", png())), Wanted((1,), methods=("cdam", "integrated-cdam")))
    (note,) = found.maps.notes  # one, of two methods
    assert "also depends on 1 of this model's" in note
    assert note in html.unescape(result_html(found))
    assert found.maps.notes == json.loads(download(found, "json")[1])["images"][0]["notes"]


def test_what_is_asked_wrongly_is_said(digits, scene):
    for wanted, words in (
        (Wanted(), "Choose a class, or give pictures"),
        (Wanted((1,), contrast=True), "choose two"),
        (Wanted((11,)), "Expected classes from 0 to 9"),
        (Wanted((1,), methods=()), "at least one method"),
        (Wanted((1,), methods=("lime",)), "not offered"),
        (Wanted(tuple(range(7))), "at most 6 at once, got 7"),
    ):
        with pytest.raises(ValueError, match=words):
            explain(scene, wanted)
    concept = concept_of(digits, "grey", [scene.upload])
    found = explain(scene, Wanted((1,), concept=concept, methods=("cdam", "gradcam")))
    assert list(found.maps.maps) == ["cdam"]
    assert found.failed["gradcam"].endswith("explains classes, not concept grey: choose CDAM, or leave it out.")
    assert "choose CDAM" in result_html(found)


def test_uploads_are_limited_in_size_and_kind(monkeypatch, tmp_path):
    assert accepted("a b/c?.jpg", png(kind="JPEG")).stem == "c"
    assert accepted("x.webp", png(kind="WEBP")).opened().size == (80, 60)
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 90)]
    held = io.BytesIO()
    frames[0].save(held, "WEBP", save_all=True, append_images=frames[1:])
    gif = png(kind="GIF")
    for name, data, words in (
        ("x.gif", gif, "x.gif is none of these"),
        ("x.png", gif, "none of these"),
        ("x.png", b"<svg/>", "none of these"),
        ("x.png", b"", "none of these"),
        ("x.webp", held.getvalue(), "has 2 pictures"),
        ("x.png", png()[:-4000], "x.png is damaged"),
        ("x.png", bytes(_app_picture.BYTES + 1), r"has 10\.0 MB"),
    ):
        with pytest.raises(ValueError, match=words):
            accepted(name, data)
    monkeypatch.setattr(_app_picture, "PIXELS", 80 * 60 - 1)
    with pytest.raises(ValueError, match="has 80 x 60 pixels"):
        accepted("x.png", png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="has more"):
        accepted("x.png", png())


def test_a_photograph_that_lies_on_its_side_is_turned_upright(digits):
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = np.asarray(accepted("x.png", scene_png()[0]).opened())
    lying = png(np.rot90(upright).copy(), exif=turned.tobytes())
    given = [see(digits, accepted("x.png", data)).x for data in (png(upright.copy()), lying)]
    torch.testing.assert_close(*given)


@pytest.mark.slow
def test_files_are_those_of_the_command_and_nothing_is_left(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = explain(scene, Wanted((3, 5), methods=("cdam", "gradcam")))
    name, data = download(found, "picture")
    assert name == "my-scene.maps.png"
    assert Image.open(io.BytesIO(data)).size[0] > 900
    name, data = download(found, "json")
    facts = json.loads(data)
    assert (name, facts["schema"], facts["model"]["name"]) == (
        "explanation.json",
        "xai-discern/explanation/1",
        "digits",
    )
    (image,) = facts["images"]
    assert image["file"] == "my scene.png"
    name, data = download(found, "arrays")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert sorted(archive.namelist()) == sorted(one["array"] for one in image["maps"])
        for one, expected in zip(image["maps"], [*found.maps.maps["cdam"], *found.maps.maps["gradcam"]], strict=True):
            np.testing.assert_array_equal(np.load(io.BytesIO(archive.read(one["array"]))), expected)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="Expected picture, arrays or json"):
        download(found, "csv")


def test_the_check_is_that_of_captum_ext(scene):
    found = explain(scene, Wanted((3,), methods=("cdam", "attention", "gradcam")))
    ours, attention, cam = checked(found)
    trust = check(CDAM(digit_vit.load()), scene.x, 3)
    assert (ours["verdict"], ours["reasons"]) == (trust.verdicts[0], trust.reasons[0])
    assert ours["numbers"]["agreement"] == pytest.approx(float(trust.agreement[0]), abs=1e-4)
    assert any("does not depend on what is asked" in reason for reason in attention["reasons"])
    assert cam["error"] == "There is no check of this method."


@pytest.mark.slow
def test_two_users_at_once_get_what_each_gets_alone(scene):
    wanted = [Wanted((number,), methods=("smooth-cdam",), seed=7) for number in range(8)]
    alone = [explain(scene, one).maps.maps["smooth-cdam"] for one in wanted]
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: explain(scene, wanted[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        torch.testing.assert_close(found[i].maps.maps["smooth-cdam"], expected, rtol=0, atol=0)


@pytest.mark.slow
def test_methods_are_those_that_fit_and_take_no_minutes(digits, tmp_path):
    torch.manual_seed(0)
    assert list(digits.methods)[: len(FIRST)] == list(FIRST)
    assert not {"lime", "scorecam", "random", "deep-lift", "mhex-cam"} & set(digits.methods)
    assert max(map(forwards, digits.methods.values())) <= 110
    save_for_hf(timm.create_model("resnet10t", num_classes=3).eval(), tmp_path)
    network = Models([str(tmp_path)])[str(tmp_path)]
    assert network.usual == "gradcam"
    assert not {"cdam", "attention"} & set(network.methods)
    assert {"deep-lift", "fullgrad"} <= set(network.methods)


@pytest.mark.slow
def test_models_that_are_not_offered_are_refused():
    models = Models(["digits"])
    with pytest.raises(ValueError, match="This page offers digits, and no other models; got 'timm:vit_tiny"):
        models["timm:vit_tiny_patch16_224"]
    free = Models(["digits"], any_model=True)
    for name in ("python:os:system", "/etc", "digit"):
        with pytest.raises(ValueError, match="Expected timm:NAME"):
            free[name]
    loaded = free["timm:vit_tiny_patch16_224"]
    assert loaded.random
    assert free["timm:vit_tiny_patch16_224"] is loaded
    found = explain(see(loaded, accepted("x.png", png())), Wanted((1,)))
    assert "RANDOM WEIGHTS: these maps say nothing of the image" in result_html(found)
    for given, error in (("digits", TypeError), ([], ValueError), (["digits", "digits"], ValueError)):
        with pytest.raises(error, match="Expected `models`"):
            Models(given)


def test_samples_come_with_the_package():
    found = samples(["digits"])
    assert [one.name for one in found][:1] == ["4 and 5"]
    assert len(found) == 4


def test_names_are_shown_as_text(scene):
    upload = accepted("<img src=x onerror=alert(1)>.png", scene.upload.data)
    concept = concept_of(scene.loaded, "<script>alert(1)</script>", [upload])
    page = result_html(explain(see(scene.loaded, upload), Wanted((1,), concept=concept)))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_options_of_the_command(capsys):
    for arguments, words in (
        (("--port", "0"), "expected a number from 1 to 65535, got '0'"),
        (("--port", "x"), "expected a number"),
        (("--model", "resnet18"), "`xai-discern models resnet18` finds names"),
        (("--hots", "0.0.0.0"), "unrecognized arguments: --hots 0.0.0.0 (close: --host"),
    ):
        code, said = stopped(capsys, "app", *arguments)
        assert (code, words in said) == (2, True), said


@pytest.mark.slow
def test_a_model_that_is_not_there_is_said_before_the_page_is_served(capsys):
    code, said = stopped(capsys, "app", "--model", "timm:vit_tiny_patch16_22")
    assert code == 1
    assert "(close: vit_tiny_patch16_224" in said


def test_help_needs_neither_torch_nor_gradio():
    code = "import sys; from xai_discern.cli import main\ntry: main(['app', '--help'])\nexcept SystemExit: pass\n"
    code += "print([one for one in ('torch', 'gradio', 'numpy') if one in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.search(r"--host HOST\s+where to listen \(default: 127\.0\.0\.1\)", said)
    assert said.rstrip().endswith("[]")


def test_without_gradio_it_is_said_what_to_install(monkeypatch, capsys):
    for name in [one for one in sys.modules if one in ("xai_discern._app_page", "xai_discern._app_handlers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, said = stopped(capsys, "app")
    assert code == 1
    assert "xai-discern: The page needs gradio: pip install 'xai-discern[app]'." in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_page_is_served_on_this_machine_unless_asked_and_its_folder_is_removed(monkeypatch):
    page = build()
    given = {}

    def launch(**options):
        given.update(options)
        return None, "http://127.0.0.1:7860/", None

    monkeypatch.setattr(page, "launch", launch)
    monkeypatch.setattr(threading.Event, "wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    folder = Path(page._folder.name)
    assert folder.is_dir()
    said = []
    with pytest.raises(KeyboardInterrupt):
        serve(page, say=said.append)
    assert (given["server_name"], given["share"]) == ("127.0.0.1", False)
    assert said == ["Open http://127.0.0.1:7860/  (Ctrl-C stops it)"]
    assert not folder.exists()
    assert _app_session._one_at_a_time.acquire(blocking=False)
    _app_session._one_at_a_time.release()


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = stopped(capsys, "app", "--port", port)
    assert code == 1
    assert f"xai-discern: Port {port} of 127.0.0.1 is taken, or cannot be used: choose another by --port." in said
