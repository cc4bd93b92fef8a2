"""The examples of masks and graphs: what they draw, score and write."""

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")

import blood_cells
import mask_data
import mhex_from_scratch
import mhex_gates
import mhex_graphs
import mhex_masks
from seed_intervals import with_interval
from small_unet import SmallUNet

from adapters import MHEX
from xai_compare.digit_scenes import make_scenes


def test_intervals_are_students():
    assert with_interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # 4.303 / sqrt(3)
    assert with_interval([0.25]) == "0.250"


def test_masks_are_the_ink_of_each_digit():
    scenes = make_scenes(4, "test", noise=0.0)
    found = mask_data.digit_masks(scenes)
    for i in range(4):
        for slot in range(2):
            top, left = scenes.boxes[i, slot].tolist()
            box = found[i, top : top + 16, left : left + 16]
            ink = scenes.images[i, 0, top : top + 16, left : left + 16] > 0.3
            assert torch.equal(box == scenes.labels[i, slot], ink)
    assert torch.equal(found != 10, scenes.images[:, 0] > 0.3)


class Says(nn.Module):
    """Predicts a given mask with certainty where there is ink, and paper elsewhere."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, images):
        mask = self.mask.where(images[:, 0] > 0.3, 10)
        return 50 * nn.functional.one_hot(mask, 11).movedim(-1, 1).float()


def test_scores_of_masks_are_those_by_hand():
    scenes = mask_data.load_pictures("digits", "test", 6, seed=0)
    shown = len(scenes.masks.unique()) - 1
    assert mhex_masks.mean_iou(Says(scenes.masks), scenes) == pytest.approx(shown / 10)
    ideal = mhex_masks.drop(Says(scenes.masks), scenes.regions().float(), scenes)
    assert ideal == pytest.approx(1)  # a digit is less than a tenth of a scene
    assert mhex_masks.drop(Says(scenes.masks), -scenes.images, scenes) == 0  # paper alone


def test_ellipses_fill_their_boxes_and_small_cells_lie_on_top():
    red, platelet = (blood_cells.CLASSES.index(name) for name in ("RBC", "Platelets"))
    cells = [(platelet, (100.0, 40.0, 140.0, 60.0)), (red, (50.0, 20.0, 250.0, 120.0))]
    mask = mask_data.ellipses(cells, (40, 60))
    for y in range(40):
        for x in range(60):
            column, row = 5 * (x + 0.5), 5 * (y + 0.5)
            inside = {
                label: ((column - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((row - (y0 + y1) / 2) / (y1 - y0)) ** 2 <= 0.25
                for label, (x0, y0, x1, y1) in cells
            }
            assert mask[y, x] == next((label for label, within in inside.items() if within), 3)
    assert int((mask != 3).sum()) == pytest.approx(torch.pi / 4 * 40 * 20, rel=0.03)


def test_pictures_and_masks_are_mirrored_together():
    torch.manual_seed(0)
    masks = torch.arange(6).view(1, 2, 3)
    for _ in range(8):
        images, mirrored = mask_data.mirrored(masks[:, None].float().expand(1, 3, 2, 3), masks)
        assert torch.equal(images[:, 1], mirrored.float())
    seen = {tuple(mask_data.mirrored(masks, masks)[1].flatten().tolist()) for _ in range(40)}
    assert len(seen) == 4


CELLS = Path(__file__).parents[2] / "shared" / "data" / "bccd"


@pytest.mark.slow
@pytest.mark.skipif(not CELLS.is_dir(), reason="the blood cells of BCCD are not there")
def test_of_blood_cells_the_rarest_kind_is_explained():
    pictures = mask_data.load_pictures(str(CELLS), "test", 20, seed=0)
    assert pictures.images.shape == (20, 3, 48, 64)
    for mask, explained in zip(pictures.masks, pictures.explained, strict=True):
        counts = {name: int((mask == i).sum()) for i, name in enumerate(blood_cells.CLASSES)}
        rarest = next(name for name in ("Platelets", "WBC", "RBC") if counts[name] >= 9)
        assert blood_cells.CLASSES[explained] == rarest


def test_the_share_of_positive_evidence_in_a_box():
    maps = torch.tensor([[[3.0, -5.0], [1.0, 0.0]], [[-1.0, -1.0], [0.0, -2.0]]])
    boxes = torch.tensor([[[True, True], [False, False]], [[False, True], [False, False]]])
    assert mhex_gates.shares_inside(maps, boxes).tolist() == [0.75, 0.25]
    boxes, images = mhex_gates.boxes_of("digits"), mhex_gates.load_data("digits", "test").images
    ink = images[:, 0] > 0.5
    assert float((ink & boxes).sum() / ink.sum()) > 0.999  # of the same scenes in the same order


def test_graphs_hold_a_house_or_a_ring_in_turns():
    torch.manual_seed(0)
    given = mhex_graphs.graphs(6)
    assert [int(one.y) for one in given] == [0, 1] * 3
    for one in given:
        inside = one.node_mask.bool()
        assert (one.num_nodes, int(inside.sum())) == (25, 5)
        edges = int(inside[one.edge_index].all(0).sum())
        assert edges == (12 if one.y else 10)
        assert mhex_graphs.area(one.node_mask, one) == 1


@pytest.mark.slow
def test_the_scripts_run_and_write_their_tables(tmp_path, monkeypatch, capsys):
    few = ["--seeds", "1", "--explained", "4", "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["mhex_masks.py", *few, "--pictures", "32"])
    mhex_masks.main()
    monkeypatch.setattr("sys.argv", ["mhex_gates.py", "--seeds", "1", "--epochs", "1", "--limit", "32", *few[-2:]])
    mhex_gates.main()
    monkeypatch.setattr("sys.argv", ["mhex_from_scratch.py", "--epochs", "1", "--pictures", "32", *few[-2:]])
    mhex_from_scratch.main()
    monkeypatch.setattr("sys.argv", ["mhex_graphs.py", *few, "--graphs", "16"])
    mhex_graphs.main()
    printed = capsys.readouterr().out
    expected = {
        "masks_digits": ("MHEX CAM", "Grad-CAM", "Layer-CAM"),
        "graphs": ("GNNExplainer", "random"),
        "gates_digits": ("layer1.0", "all blocks"),
        "from_scratch": mhex_from_scratch.WAYS,
    }
    for name, rows in expected.items():
        text = (tmp_path / f"mhex_{name}.md").read_text()
        assert text in printed
        assert all(f"\n| {row} |" in text for row in rows)


def test_the_unet_has_additions_and_skips():
    model = MHEX(SmallUNet(11), task="segmentation")
    skips = [one.label for one in model.residuals if one.skip]
    assert model.names == ("down.0", "down.1", "down.2", ":0", "up.0", ":1", "up.1")
    assert skips == [":0", ":1"]
