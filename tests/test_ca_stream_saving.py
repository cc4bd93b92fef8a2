"""CA-Stream saved, loaded and pushed."""

import json

import pytest
import torch
from ca_stream_networks import images, resnet, stream_on
from torchvision.models.resnet import BasicBlock, ResNet

from adapters import CAStream

pytestmark = pytest.mark.slow


OPTIONS = {"stages": ["layer1", "layer3", "layer4"], "start_stage": 1, "projections": True, "class_specific": True}


def test_stream_is_saved_without_its_backbone(tmp_path):
    wrapper = stream_on(resnet(), **OPTIONS)
    wrapper.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.items() >= OPTIONS.items()
    weights = sum(p.numel() * 8 for p in wrapper.stream.parameters())
    assert weights < (tmp_path / "model.safetensors").stat().st_size < weights + 5000
    other = CAStream.from_pretrained(tmp_path, model=resnet())
    assert not other.training
    assert other.stages == ("layer3", "layer4")
    assert torch.equal(other(images()), wrapper(images()))
    changed = resnet()
    changed.fc.weight.data.mul_(2)
    changed.fc.bias.data.mul_(2)
    torch.testing.assert_close(
        CAStream.from_pretrained(str(tmp_path), model=changed)(images(), torch.tensor([1, 0])),
        2 * wrapper(images(), torch.tensor([1, 0])),
    )


def test_stream_is_saved_with_its_backbone(tmp_path):
    wrapper = stream_on(resnet())
    wrapper.save_pretrained(tmp_path, with_backbone=True)
    fresh = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).double()
    assert torch.equal(CAStream.from_pretrained(tmp_path, model=fresh)(images()), wrapper(images()))
    assert torch.equal(fresh.eval()(images()), resnet()(images()))


def test_weights_of_another_layout_name_keys_and_shapes(tmp_path):
    stream_on(resnet(), start_stage=3).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"start_stage": 2}))
    with pytest.raises(ValueError) as error:
        CAStream.from_pretrained(tmp_path, model=resnet())
    for words in ("stream.query", "(256,)", "(128,)", "stream.projections.2.weight", "stream.projections.0.weight"):
        assert words in str(error.value)


def test_loading_needs_a_model(tmp_path):
    stream_on(resnet()).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="model="):
        CAStream.from_pretrained(tmp_path)


@pytest.mark.parametrize("with_backbone", [None, True])
def test_pushing_uploads_weights_and_settings(monkeypatch, tmp_path, with_backbone):
    from huggingface_hub import HfApi
    from safetensors.torch import load_file

    seen = {}

    def upload(_, *, repo_id, folder_path, **__):
        seen["repo"] = repo_id
        seen["files"] = {p.name for p in type(tmp_path)(folder_path).iterdir()}
        seen["state"] = load_file(type(tmp_path)(folder_path) / "model.safetensors")
        seen["config"] = json.loads((type(tmp_path)(folder_path) / "config.json").read_text())
        return "done"

    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **__: type("Url", (), {"repo_id": repo_id})())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    wrapper = stream_on(resnet(), start_stage=2)
    wrapper.push_to_hub("someone/stream", with_backbone=with_backbone)
    assert seen["repo"] == "someone/stream"
    assert seen["files"] >= {"model.safetensors", "config.json"}
    assert seen["config"]["start_stage"] == 2
    state = {k: v for k, v in wrapper.state_dict().items() if with_backbone or k.startswith("stream.")}
    assert seen["state"].keys() == state.keys()
    assert all(torch.equal(seen["state"][k], state[k]) for k in state)
