"""Maps of answers by hooks and autograd, word by word, as generation without a cache would read them."""

import torch


def by_hand(model, alone, answer):
    """T * dlogit/dT for each token of the answer, (answer tokens, tokens of the prompt); T enters the last attention.

    The prompt is run alone, without padding, and word by word: for each token of the answer with the tokens before it,
    as generation without a cache would.
    """
    leaves, scores = [], []

    def enter(_, args, kwargs):
        given = args[0] if args else kwargs["hidden_states"]
        leaves.append(given.detach().requires_grad_())
        return ((leaves[-1], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": leaves[-1]})

    attention = next(part for name, part in model.get_decoder().layers[-1].named_children() if "attn" in name)
    handle = attention.register_forward_pre_hook(enter, with_kwargs=True)
    for number, token in enumerate(answer):
        logits = model(**continued(model, alone, answer[:number]), use_cache=False).logits
        (gradient,) = torch.autograd.grad(logits[0, -1, token], leaves[-1])
        scores.append((leaves[-1] * gradient).sum(-1)[0, : alone["input_ids"].shape[1]].detach())
    handle.remove()
    return torch.stack(scores)


def continued(model, alone, answer):
    """The prompt and some tokens of its answer; token types as the family's generation has them."""
    more = torch.tensor([answer], dtype=torch.long)
    given = {**alone, "input_ids": torch.cat([alone["input_ids"], more], 1)}
    types = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": int(model.config.model_type == "paligemma")}
    for name, value in types.items():
        if name in alone:
            given[name] = torch.cat([alone[name], torch.full_like(more, value)], 1)
    return given
