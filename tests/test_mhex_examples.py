"""The examples of masks and graphs: what they draw, score and write."""

import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")

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
    found = mhex_masks.masks(scenes)
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
    scenes = make_scenes(6, "test", noise=0.0)
    wanted = mhex_masks.masks(scenes)
    shown = len(scenes.labels.unique())
    assert mhex_masks.mean_iou(Says(wanted), scenes) == pytest.approx(shown / 10)
    digits = scenes.labels[:, 0]
    region = wanted == digits[:, None, None]
    ideal = mhex_masks.drop(Says(wanted), lambda *_: region[:, None].float(), scenes)
    assert ideal == pytest.approx(1)  # a digit is less than a tenth of a scene
    assert mhex_masks.drop(Says(wanted), lambda *_: -scenes.images, scenes) == 0  # paper alone


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
def test_both_scripts_run_and_write_their_tables(tmp_path, monkeypatch, capsys):
    few = ["--seeds", "1", "--explained", "4", "--epochs", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["mhex_masks.py", *few, "--scenes", "32"])
    mhex_masks.main()
    monkeypatch.setattr("sys.argv", ["mhex_graphs.py", *few, "--graphs", "16"])
    mhex_graphs.main()
    printed = capsys.readouterr().out
    for name, rows in (("masks", ("MHEX", "Grad-CAM", "Layer-CAM")), ("graphs", ("GNNExplainer", "random"))):
        text = (tmp_path / f"mhex_{name}.md").read_text()
        assert text in printed
        assert all(f"| {row} |" in text for row in rows)


def test_the_unet_has_additions_and_skips():
    model = MHEX(SmallUNet(11), task="segmentation")
    skips = [one.label for one in model.residuals if one.skip]
    assert model.names == ("down.0", "down.1", "down.2", ":0", "up.0", ":1", "up.1")
    assert skips == [":0", ":1"]
