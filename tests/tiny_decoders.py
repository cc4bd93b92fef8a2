"""Tiny decoders with random weights, prompts for them, and their maps by hooks and autograd."""

import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

SIZES = {
    **{"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 64},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}
GPT2 = {
    "vocab_size": 60,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "starcoder2": lambda: Starcoder2ForCausalLM(Starcoder2Config(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
}
PARALLEL = {"phi": lambda: PhiForCausalLM(PhiConfig(**SIZES))}  # one norm for the attention and the layers beside it
PROMPTS = [[5, 9, 31, 7, 22, 40], [6, 17, 3], [8, 4, 33, 51]]


def decoder(name):
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = (DECODERS | PARALLEL)[name]().double().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch(side, prompts=PROMPTS):
    size = max(map(len, prompts))
    ids, mask = torch.zeros(len(prompts), size, dtype=torch.long), torch.zeros(len(prompts), size, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(size - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def last_norm(model):
    return model.transformer.h[-1].ln_1 if hasattr(model, "transformer") else model.model.layers[-1].input_layernorm


def by_hooks(model, prompt, answer, score="logit"):
    """Token times gradient of each answer token, of one prompt without padding, from all logits of the model."""
    leaves = []

    def exchange(_, __, output):
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0]

    with last_norm(model).register_forward_hook(exchange):
        logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
    logits = logits.log_softmax(-1) if score == "log_prob" else logits
    chosen = [logits[len(prompt) - 1 + number, token] for number, token in enumerate(answer)]
    rows = [(torch.autograd.grad(one, leaves[0], retain_graph=True)[0] * leaves[0]).sum(-1)[0] for one in chosen]
    return torch.stack(rows)[:, : len(prompt)].detach()
