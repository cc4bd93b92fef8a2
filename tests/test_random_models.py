"""The CDAM family on random models: the numbers of plain autograd, or a stated refusal where autograd has none.

`python tests/test_random_models.py FIRST LAST` prints a line for each seed that fails, with the parts of its model;
`--parts WORD ...` takes the seeds of which a part has one of the words, `--verbose` prints every seed, `--refused`
those that were refused too. A failing seed is looked at with `random_models.make(seed)`.
"""

import argparse
import time
import warnings
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from random_models import RandomModel, Reads, make, reference
from torch import Tensor
from torch.nn import functional as F

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM

STEPS, SAMPLES, DEVIATION = 4, 3, 0.1
MOST_REFUSED = 0.03
# a scripted head that reads a view, cut gradients, transposed tokens, frozen encoders
ONCE_WRONG = (1201, 1271, 1294, 1392, 1415, 1465, 1637, 1834, 1867, 2016, 2379, 2524)
KINDS = {"cdam": CDAM, "integrated": IntegratedCDAM, "smooth": SmoothCDAM}
BLANK = 1e-12  # a map that is zero may be refused
SMALL = 1e-6  # differences are relative to the largest score, or to this


@dataclass
class Finding:
    """What one map was.

    Attributes:
        verdict: "right", "refused" (the reference exists), "wrong", "not refused" (there is none), "crashed", "changed"
            (the model, by the explanation) or "no reference" (refused as it must).
        words: The difference, or the message.
    """

    verdict: str
    words: str = ""

    @property
    def fails(self) -> bool:
        return self.verdict in ("wrong", "not refused", "crashed", "changed")


# ---------------------------------------------------------------- one seed


def examine(random_model: RandomModel) -> list[Finding]:
    """The findings for all methods, before and after the model's change, with the same explainers."""
    explainers = {kind: _constructed(method, random_model) for kind, method in KINDS.items()}
    found = [_finding(kind, explainer, random_model, "") for kind, explainer in explainers.items()]
    if random_model.change is not None:
        random_model.change()
        found += [
            _finding(kind, explainer, random_model, " after the change") for kind, explainer in explainers.items()
        ]
    return found


def _constructed(method, random_model):
    try:
        return method(random_model.model)
    except Exception as error:
        return error


def _finding(kind: str, explainer, random_model: RandomModel, when: str) -> Finding:
    finding = _judged(kind, explainer, random_model)
    return Finding(finding.verdict, f"{kind}{when}: {finding.words}")


def _judged(kind: str, explainer, random_model: RandomModel) -> Finding:
    expected = reference(random_model, kind, steps=STEPS, samples=SAMPLES, deviation=DEVIATION, generator=_generator())
    before = _state(random_model.model)
    try:
        actual = _map(kind, explainer, random_model)
    except (ValueError, TypeError) as error:
        actual = error
    except Exception as error:
        return Finding("crashed", f"{type(error).__name__}: {error}")
    changed = [name for name, value in _state(random_model.model).items() if not _same(value, before[name])]
    if changed:
        return Finding("changed", ", ".join(changed[:5]))
    return _compared(actual, expected, random_model.tolerance)


def _map(kind: str, explainer, random_model: RandomModel) -> Tensor:
    if isinstance(explainer, Exception):
        raise explainer
    options = {
        "cdam": {},
        "integrated": {"n_steps": STEPS},
        "smooth": {"nt_samples": SAMPLES, "stdevs": DEVIATION, "generator": _generator()},
    }[kind]
    return explainer.attribute(
        random_model.inputs.clone(),
        random_model.target,
        additional_forward_args=random_model.arguments or None,
        return_tokens=True,
        **options,
    )


def _compared(actual: Tensor | Exception, expected: Tensor | None, tolerance: float) -> Finding:
    if isinstance(actual, Exception):
        has_numbers = expected is not None and float(expected.abs().max()) > BLANK
        return Finding("refused" if has_numbers else "no reference", f"{type(actual).__name__}: {actual}")
    if expected is None:
        return Finding("not refused", "autograd has no finite gradient, a map was given")
    actual = actual.flatten(1)
    if actual.shape != expected.shape:
        return Finding("wrong", f"shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp_min(SMALL))
    return Finding("right" if difference <= tolerance else "wrong", f"off by {difference:.2g}")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def _state(model: torch.nn.Module) -> dict:
    """What an explanation must leave as it was."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    state = {f"value of {name}": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state[f"requires_grad, grad of {name}"] = (parameter.requires_grad, parameter.grad)
    for name, module in model.named_modules():
        counts = [len(getattr(module, hook, ())) for hook in hooks]
        state[f"module {name}"] = (type(module), module.training, counts, sorted(vars(module)))
    state["random state"] = torch.get_rng_state()
    state["grad mode"] = torch.is_grad_enabled()
    state["function"] = F.scaled_dot_product_attention
    return state


def _same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


# ---------------------------------------------------------------- tests


def _check(seeds) -> None:
    failing, refused = [], []
    for seed in seeds:
        random_model = make(seed)
        findings = examine(random_model)
        failing += [_line(random_model, finding) for finding in findings if finding.fails]
        refused += [_line(random_model, finding) for finding in findings if finding.verdict == "refused"][:1]
    assert not failing, "\n".join(failing)
    assert len(refused) <= MOST_REFUSED * len(seeds), "\n".join(refused)


def _line(random_model: RandomModel, finding: Finding) -> str:
    return f"seed {random_model.seed} {finding.verdict}: {finding.words[:200]} [{'; '.join(random_model.parts)}]"


class Product(torch.nn.Module):
    """`f_c = sum_i W_ci (T_i0 T_i1 + x_i0)`, where the attention reads `T`, and `x` stays on the residual path.

    By hand: CDAM is `2 W_ci T_i0 T_i1`, and the n-step right Riemann sum `W_ci T_i0 T_i1 (n + 1) / n`.
    """

    def __init__(self):
        super().__init__()
        self.reads = Reads()
        self.weight = torch.tensor([[1.0, 2.0, -1.0], [3.0, 0.5, 5.0]], dtype=torch.float64)

    def forward(self, x):
        self.reads(-x)  # an earlier read
        return (self.reads(x).prod(-1) + x[..., 0]) @ self.weight.T


def test_reference_is_the_closed_form():
    model, x = Product(), torch.randn(2, 3, 2, dtype=torch.float64)
    product = RandomModel(0, model, x, (), [0, 1], [], 1e-12, None)
    torch.testing.assert_close(reference(product), 2 * model.weight * x.prod(-1))
    torch.testing.assert_close(reference(product, "integrated", steps=4), model.weight * x.prod(-1) * 5 / 4)
    noise = torch.stack([torch.empty(3, 2).double().normal_(generator=g) for g in [_generator()] for _ in range(3)])
    expected = (2 * model.weight * (x + 0.7 * noise[:, None]).prod(-1)).mean(0)
    torch.testing.assert_close(reference(product, "smooth", deviation=0.7, generator=_generator()), expected)


def test_reference_without_a_gradient_is_none():
    model = Product()
    model.reads = torch.nn.Sequential(Reads(), Detached())
    assert reference(RandomModel(0, model, torch.ones(2, 3, 2).double(), (), 0, [], 1e-12, None)) is None


class Detached(torch.nn.Module):
    def forward(self, x):
        return x.detach()


@pytest.mark.filterwarnings("ignore")  # of torch.jit.script
def test_a_seed_is_always_the_same_model():
    for seed in range(10):
        first, second = make(seed), make(seed)
        assert first.parts == second.parts
        assert torch.equal(first.run(), second.run())


@pytest.mark.parametrize(
    ("actual", "expected", "verdict"),
    [
        (torch.ones(2, 3), torch.ones(2, 3), "right"),
        (torch.ones(2, 3) + 1e-6, torch.ones(2, 3), "wrong"),
        (torch.ones(2, 2), torch.ones(2, 3), "wrong"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), "wrong"),
        (torch.ones(2, 3), None, "not refused"),
        (ValueError(), torch.ones(2, 3), "refused"),
        (ValueError(), torch.zeros(2, 3), "no reference"),
        (ValueError(), None, "no reference"),
    ],
)
def test_verdicts(actual, expected, verdict):
    assert _compared(actual, expected, 1e-8).verdict == verdict


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.jit.script, and of the package where it takes a slower way
def test_maps_are_autograds_or_refused():
    _check([*range(60), *ONCE_WRONG])


@pytest.mark.slow
@pytest.mark.large
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_maps_of_many_models():
    _check(range(1000, 3000))


# ---------------------------------------------------------------- script


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?", help="included; left out: the first alone, verbosely")
    parser.add_argument("--parts", nargs="*", default=[], help="words, of which one must be in a part")
    parser.add_argument("--refused", action="store_true", help="print refusals too")
    parser.add_argument("--verbose", action="store_true", help="print all maps of all seeds")
    return parser.parse_args()


def main() -> None:
    """The script."""
    warnings.simplefilter("ignore")
    arguments = _arguments()
    verbose = arguments.verbose or arguments.last is None
    last = arguments.first if arguments.last is None else arguments.last
    worst, having, failing, started = Counter(), Counter(), Counter(), time.time()
    refusals = Counter()
    for seed in range(arguments.first, last + 1):
        random_model = make(seed)
        if arguments.parts and not any(word in part for word in arguments.parts for part in random_model.parts):
            continue
        findings = examine(random_model)
        verdict = _worst(findings)
        worst[verdict] += 1
        having.update(random_model.parts)
        if Finding(verdict).fails:
            failing.update(random_model.parts)
        refusals.update({finding.words.split(": ", 1)[1][:150] for finding in findings if finding.verdict == "refused"})
        if verbose or Finding(verdict).fails or (arguments.refused and verdict == "refused"):
            _print_seed(random_model, findings, verbose)
    _print_summary(worst, having, failing, refusals, time.time() - started)


def _worst(findings: list[Finding]) -> str:
    order = ("wrong", "not refused", "changed", "crashed", "refused", "right", "no reference")
    return min((finding.verdict for finding in findings), key=order.index)


def _print_seed(random_model: RandomModel, findings: list[Finding], verbose: bool) -> None:
    shown = findings if verbose else [finding for finding in findings if finding.fails] or findings
    if not verbose:
        words = " | ".join(f"{finding.verdict}: {finding.words[:90]}" for finding in shown[:6])
        print(f"{random_model.seed} {words} [{'; '.join(random_model.parts)}]", flush=True)  # noqa: T201
        return
    print(f"{random_model.seed} {'; '.join(random_model.parts)}")  # noqa: T201
    for finding in shown:
        print(f"    {finding.verdict}: {finding.words[:400]}", flush=True)  # noqa: T201


def _print_summary(worst: Counter, having: Counter, failing: Counter, refusals: Counter, seconds: float) -> None:
    print(f"{sum(worst.values())} seeds in {seconds:.0f} s: {dict(worst)}")  # noqa: T201
    if refusals:
        print("refusals:")  # noqa: T201
        for words, count in refusals.most_common(10):
            print(f"    {count} times {words}")  # noqa: T201
    if failing:
        print("parts that fail most often (failing of all with the part):")  # noqa: T201
        for part in sorted(failing, key=lambda part: (-failing[part] / having[part], -failing[part]))[:15]:
            print(f"    {failing[part]} of {having[part]}  {part}")  # noqa: T201


if __name__ == "__main__":
    main()
