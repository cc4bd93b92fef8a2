"""The picture of the README, and the list of models."""

import json

import numpy as np
import pytest
import torch
from explaining import stopped
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from xai_discern.cli import main


@pytest.mark.slow
def test_the_picture_of_the_readme_is_made_by_the_command_from_the_class_token_alone(tmp_path, monkeypatch):
    import two_classes

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 224, "patch_size": 28}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "weights")
    monkeypatch.setattr(two_classes, "CROPS", 12)
    monkeypatch.setattr("sys.argv", ["", "--weights", str(tmp_path / "weights"), "--out", str(tmp_path / "out")])
    two_classes.main()
    facts = json.loads((tmp_path / "out" / "explanation.json").read_text())
    assert [one["target"]["name"] for one in facts["images"][0]["maps"]] == ["cat", "coffee"]
    assert facts["images"][0]["seen"] == [224, 448]
    assert facts["images"][0]["maps"][0]["shape"] == [8, 16]
    assert np.asarray(Image.open(tmp_path / "out" / "scene.png")).shape == (300, 600, 3)  # not drawn over
    model = two_classes.Dinov2ForImageClassification.from_pretrained(tmp_path / "out" / "model")
    assert model.classifier.weight[:, 48:].abs().max() == 0 < model.classifier.weight[:, :48].abs().min()


def test_models_are_found_and_tried(capsys):
    main(["models", "vit_tiny_patch16_22"])
    assert "timm:vit_tiny_patch16_224" in capsys.readouterr().out.splitlines()
    main(["models", "vit_tiny_patch_16_224"])
    assert "timm:vit_tiny_patch16_224" in capsys.readouterr().out.splitlines()
    main(["models", "timm:deit_tiny_patch16_224"])
    assert "timm:deit_tiny_patch16_224: --method cdam works, computed by closed form" in capsys.readouterr().out
    main(["models"])
    assert "timm:NAME" in capsys.readouterr().out
    assert stopped(capsys, "models", "zzzzzz")[0] == 1
