"""Pictures that are not 8-bit RGB: what reaches the model, and what is skipped with a reason."""

import warnings

import numpy as np
import pytest
import tifffile
import timm
import torch
import torchvision
import transformers
from data_runs import LABELS, compared, net, plain, save
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

DEEP = np.random.default_rng(0).integers(9000, 15000, (12, 12))


def read(path, out, transform=plain, channels=3, **settings):
    """What the model gets of a file, or why it is skipped."""
    save(path.parent / "zz.png", size=(12, 12)) if channels in (1, 3) else None
    seen = []
    model = net(channels)
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    try:
        run = compared(path.parent, out, model, transform=transform, methods=["random"], **settings)
    finally:
        handle.remove()
    skipped = run.skipped().set_index("name").error
    return skipped[path.name] if path.name in skipped else seen[0][0]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("transform", [plain, ToTensor(), lambda image: ToTensor()(image)])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_range_and_depth(tmp_path, transform, channels):
    path = save(tmp_path / "data" / "ct.png", DEEP.astype(np.uint16))
    found = read(path, tmp_path / "run", transform, channels)
    assert found.shape == (channels, 12, 12)
    assert np.allclose(found, np.broadcast_to(DEEP / 65535, found.shape), atol=1e-7)
    assert len(found.unique()) == len(np.unique(DEEP)) > 80


@pytest.mark.slow
def test_a_picture_that_is_nearly_black_is_said(tmp_path):
    dark = save(tmp_path / "dark" / "ct.png", (DEEP // 8).astype(np.uint16))
    with pytest.warns(UserWarning, match="nearly black, as its largest value is less than a sixteenth"):
        read(dark, tmp_path / "run")
    bright = save(tmp_path / "bright" / "ct.png", DEEP.astype(np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(bright, tmp_path / "other")


@pytest.mark.slow
def test_what_a_transform_takes_for_white_is_found_out(tmp_path):
    path = save(tmp_path / "data" / "ct.png", DEEP.astype(np.uint16))
    by_hand = lambda image: torchvision.transforms.v2.functional.pil_to_tensor(image) / 255  # noqa: E731
    expected = torch.as_tensor(DEEP / 65535, dtype=torch.float32).expand(3, -1, -1)
    assert torch.allclose(read(path, tmp_path / "by hand", by_hand), expected, atol=1e-6)
    preset = torchvision.transforms._presets.ImageClassification(crop_size=12, resize_size=12)
    mean, std = (torch.tensor(one)[:, None, None] for one in (preset.mean, preset.std))
    assert torch.allclose(read(path, tmp_path / "preset", preset), (expected - mean) / std, atol=1e-5)
    ours = timm.data.create_transform((3, 12, 12), crop_pct=1.0, interpolation="bicubic")
    assert torch.allclose(read(path, tmp_path / "timm", ours), (expected - mean) / std, atol=1e-5)
    eight_bits_only = Compose([Resize(12, InterpolationMode.BILINEAR), ToTensor(), Normalize(preset.mean, preset.std)])
    said = read(path, tmp_path / "old", eight_bits_only)
    assert "more than 8 bits, and the transform takes only 8-bit pictures: use one that takes tensors" in said


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("a.tif", np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12), 1),
        ("a.tif", DEEP.astype(np.int32) * 100_000, 2**31 - 1),
        ("a.npy", DEEP.astype(np.uint16), 65535),
        ("a.npy", (DEEP % 256).astype(np.uint8), 255),
        ("a.npy", DEEP / 15000, 1),
    ],
)
def test_other_numbers_keep_their_range(tmp_path, name, pixels, expected):
    path = tmp_path / "data" / name
    path.parent.mkdir()
    np.save(path, pixels) if name.endswith("npy") else save(path, pixels)
    found = read(path, tmp_path / "run", channels=1)
    assert np.allclose(found[0], pixels / expected, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (DEEP.astype(np.float32), "floats from 0 to 1 or of positive integers, got mode F from 9"),
        ((DEEP - 12000).astype(np.int32), "got mode I from -"),
        (np.full((12, 12), np.nan, np.float32), "got mode F from nan"),
    ],
)
def test_numbers_without_a_known_white_are_skipped(tmp_path, pixels, said):
    assert said in read(save(tmp_path / "data" / "a.tif", pixels), tmp_path / "run")


RGB = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)


def readable(path):
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


@pytest.mark.sampled(1)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_eight_bits_are_grey_or_rgb_as_the_model_takes(tmp_path, mode, channels):
    path = tmp_path / "data" / ("a.png" if mode not in ("CMYK", "YCbCr") else "a.tif")
    path.parent.mkdir()
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(path)
    found = read(path, tmp_path / "run", channels=channels)
    if not readable(path):  # by some versions of Pillow, which save YCbCr as none of them can read
        assert "its colours are YCbCr: save it as RGB" in found
        return
    colours = np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255
    wanted = colours if channels == 3 else (colours * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0)[None]
    assert found.shape == (channels, 12, 12)
    assert np.allclose(found, wanted, atol=0.02 if mode == "YCbCr" else 0.005)


def test_colours_below_what_is_transparent_stay(tmp_path):
    picture = Image.fromarray(RGB).convert("P")
    (tmp_path / "data").mkdir()
    picture.save(tmp_path / "data" / "a.png", transparency=bytes(range(256)))
    expected = np.asarray(picture.convert("RGB")).transpose(2, 0, 1) / 255
    assert np.allclose(read(tmp_path / "data" / "a.png", tmp_path / "run"), expected, atol=1e-6)


@pytest.mark.slow
def test_a_picture_of_four_channels_for_a_model_of_four(tmp_path):
    four = np.concatenate([RGB, RGB[..., :1]], 2)
    path = save(tmp_path / "data" / "a.png", four)
    save(tmp_path / "data" / "b.png")
    found = read(path, tmp_path / "run", channels=4)
    assert np.allclose(found, four.transpose(2, 0, 1) / 255)
    said = compared(tmp_path / "data", tmp_path / "other", net(4)).skipped().error.item()
    assert "it has 3 channels (RGB), and the model's first layer takes 4" in said


@pytest.mark.sampled(1)
@pytest.mark.parametrize("layout", ["npy", "planes", "interleaved", "pages"])
def test_many_channels_for_a_model_of_many(tmp_path, layout):
    data = np.random.default_rng(2).random((5, 12, 14), dtype=np.float32)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / ("a.npy" if layout == "npy" else "a.tif")
    if layout == "npy":
        np.save(path, data)
    elif layout == "interleaved":
        tifffile.imwrite(path, data.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    else:
        planes = {"planarconfig": "separate"} if layout == "planes" else {}
        tifffile.imwrite(path, data, photometric="minisblack", **planes)
    assert np.allclose(read(path, tmp_path / "run", None if layout == "npy" else plain, channels=5), data)


def test_arrays_are_channels_first_and_pages_are_not_chosen(tmp_path):
    root = tmp_path / "data"
    save(root / "zz.png", size=(3, 12))
    np.save(root / "a.npy", np.zeros((12, 3, 3), np.float32))
    tifffile.imwrite(root / "b.tif", np.zeros((7, 12, 12), np.uint8), photometric="minisblack")
    frames = [Image.fromarray(RGB[..., i]) for i in range(3)]
    frames[0].save(root / "c.gif", save_all=True, append_images=frames[1:])
    run = compared(root, tmp_path / "run")
    said = run.skipped().set_index("name").error
    assert said["a.npy"].endswith("Expected an array (3, height, width), channels first; got shape (12, 3, 3)")
    assert said["b.tif"].endswith("(3, height, width), channels first; got shape (7, 12, 12)")
    assert "it has 3 pages, and which one is meant is not known" in said["c.gif"]
    assert len(run.scores()) == 1


@pytest.mark.parametrize("ending", [".mpo", ".jpg"])
def test_phones_pictures_have_previews_and_are_read(tmp_path, ending):
    first, preview = Image.fromarray(RGB), Image.new("RGB", (6, 6))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.mpo"
    first.save(path, save_all=True, append_images=[preview])
    path = path.rename(path.with_suffix(ending))
    with Image.open(path) as file:
        assert file.n_frames == 2
        expected = plain(file.convert("RGB"))
    assert torch.allclose(read(path, tmp_path / "run"), expected)


@pytest.mark.slow
def test_a_processor_of_transformers_is_a_transform(tmp_path):
    save(tmp_path / "data" / "a.png", RGB)
    save(tmp_path / "data" / "b.png", DEEP.astype(np.uint16))
    processor = transformers.ViTImageProcessor(do_resize=False, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    found = read(tmp_path / "data" / "a.png", tmp_path / "run", processor)
    assert np.allclose(found, (RGB.transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-5)
    batched = lambda image: processor(image, return_tensors="pt")  # noqa: E731
    (tmp_path / "data" / "a.png").unlink()
    found = read(tmp_path / "data" / "b.png", tmp_path / "batched", batched)
    assert np.allclose(found, (np.broadcast_to(DEEP / 65535, (3, 12, 12)) - 0.5) / 0.25, atol=1e-4)
    with pytest.raises(ValueError, match=r"Expected a tensor \(3, height, width\) from the transform, got .*str"):
        compared(tmp_path / "data", tmp_path / "none", transform=lambda image: "image")


@pytest.mark.slow
def test_grey_pictures_for_a_timm_model_of_one_channel(tmp_path):
    save(tmp_path / "data" / "a.png", RGB[..., 0])
    options = {"model": {"num_classes": 2, "in_chans": 1}}
    run = compared(tmp_path / "data", tmp_path / "run", "timm:resnet10t", options=options)
    assert run.skipped().empty
    assert run.scores().error.isna().all()


def test_results_are_no_data(tmp_path):
    """A comparison and maps that lie in the folder of images itself: the same images and classes at each call."""
    for name in ("cat", "dog"):
        save(tmp_path / "data" / name / "1.png", size=(12, 12))
    out = tmp_path / "data" / "results"
    first = compared(tmp_path / "data", out, net(), methods=["random"], targets="label", labels=LABELS)
    beside = tmp_path / "data" / "cat"
    (beside / "explanation.json").write_text("{}")
    for name in ("1.maps.png", "my.photo.maps.png", "1.cdam.cat-not-dog.npy", "my.photo.cdam.1.npy"):
        (beside / name).write_text("a map")
    (out / "tensorboard").mkdir()
    save(out / "tensorboard" / "plot.png")
    again = compared(tmp_path / "data", out, net(), methods=["random", "ixg"], targets="label", labels=LABELS)
    assert sorted(again.explanations().drop_duplicates("sample")["name"]) == ["cat/1.png", "dog/1.png"]
    assert again.run["classes"] == first.run["classes"] == {"cat": 0, "dog": 1}
    (beside / "explanation.json").unlink()  # then they are files like others
    with pytest.raises(ValueError, match="holds another run"):
        compared(tmp_path / "data", out, net(), methods=["random"], targets="label", labels=LABELS)
