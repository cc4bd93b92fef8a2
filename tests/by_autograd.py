"""The CDAM family on the cases of `real_models`, by hooks and autograd through the whole model."""

import torch
from real_models import hooked

STEPS = 4
SAMPLES = 3
NOISE = 0.3


def site_tokens(case):
    seen = []
    if case.enters:
        handle = case.site.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    else:
        handle = case.site.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with hooked(handle), torch.no_grad():
        case.logits()
    return seen[0].clone()


def with_tokens(case, tokens, run):
    if case.enters:
        handle = case.site.register_forward_pre_hook(lambda _module, args: (tokens, *args[1:]))
    else:
        handle = case.site.register_forward_hook(lambda _module, _args, _output: tokens)
    with hooked(handle):
        return run()


def gradients(case, tokens, score):
    leaf = tokens.clone().requires_grad_()
    return with_tokens(case, leaf, lambda: torch.autograd.grad(score().sum(), leaf)[0])


def per_sample_targets(case):
    return torch.arange(len(case.inputs)) * 2 % (case.logits().shape[1] - 1) + 1


def logit(case, target):
    rows = torch.arange(len(case.inputs))
    return lambda: case.logits()[rows, target]


def expected_cdam(case, score):
    tokens = site_tokens(case)
    return (tokens * gradients(case, tokens, score)).sum(-1)


def expected_smooth(case, score, seed):
    tokens = site_tokens(case)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(tokens.shape[:2], dtype=tokens.dtype)
    for _ in range(SAMPLES):
        noisy = tokens + NOISE * torch.randn(tokens.shape[1:], generator=generator, dtype=tokens.dtype)
        total += (noisy * gradients(case, noisy, score)).sum(-1)
    return total / SAMPLES


def expected_integrated(case, score, baseline, n_steps=STEPS):
    tokens = site_tokens(case)
    mean = torch.zeros_like(tokens)
    for step in range(1, n_steps + 1):
        mean += gradients(case, baseline + step / n_steps * (tokens - baseline), score) / n_steps
    return ((tokens - baseline) * mean).sum(-1)


def rise(case, score, baseline):
    with torch.no_grad():
        return with_tokens(case, site_tokens(case), score) - with_tokens(case, baseline, score)


def as_map(case, scores):
    if case.grid is None:
        return scores
    return scores[:, case.prefix :].reshape(len(scores), 1, *case.grid)


def random_baseline(case):
    shape = site_tokens(case).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def seeded():
    return torch.Generator().manual_seed(7)
