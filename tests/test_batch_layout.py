"""Where samples lie in the tokens: seen by explaining each sample alone, and by hooks."""

import pytest
import timm
import torch
import transformers
from torch import nn
from transformers import WavLMConfig, WavLMForSequenceClassification

from captum_ext import CDAM


class TokensFirst(nn.Module):
    """Has tokens in front of the batch; there may be as many of one as of the other."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32), 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, words):
        return self.head(self.encoder(self.embed(words).transpose(0, 1))[0])


def small_swin():
    settings = {"depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 4)}
    return timm.create_model("swin_tiny_patch4_window7_224", **settings)


CASES = {
    "as many words as texts": (TokensFirst, lambda: torch.randint(0, 30, (6, 6))),
    "as many texts as axis 0": (TokensFirst, lambda: torch.randint(0, 30, (6, 4))),
    "windows": (small_swin, lambda: torch.randn(4, 3, 224, 224)),
    "blocks": (lambda: timm.create_model("nest_tiny"), lambda: torch.randn(2, 3, 224, 224)),
    "folds": (lambda: timm.create_model("mobilevit_xxs"), lambda: torch.randn(2, 3, 256, 256)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_explained_as_its_samples_are(name):
    torch.manual_seed(0)
    make, draw = CASES[name]
    model, inputs = make().eval(), draw()
    together = CDAM(model).attribute(inputs, 1)
    alone = torch.cat([CDAM(model).attribute(one[None], 1) for one in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max()))


def test_a_position_bias_that_reads_the_tokens_before_they_are_transposed_counts():
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    stem = {"conv_dim": (16, 16), "conv_kernel": (8, 4), "conv_stride": (4, 4), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    model = WavLMForSequenceClassification(WavLMConfig(**settings, **stem, **positions, num_labels=3)).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    sound = torch.randn(2, 400, dtype=torch.float64)
    found = CDAM(model).attribute(sound, 1)
    leaves = []

    def exchange(_, args, kwargs):
        read = args[0] if args else kwargs["hidden_states"]
        leaves.append(read.detach().clone().requires_grad_())
        given = {name: leaves[0] if value is read else value for name, value in kwargs.items()}
        return tuple(leaves[0] if value is read else value for value in args), given

    attention = model.wavlm.encoder.layers[-1].attention
    with attention.register_forward_pre_hook(exchange, with_kwargs=True):
        logits = model(sound).logits
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaves[0])
    torch.testing.assert_close(found, (gradient * leaves[0]).sum(-1).detach(), rtol=1e-9, atol=1e-14)
