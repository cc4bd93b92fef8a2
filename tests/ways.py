"""Maps of the CDAM family by the way that is taken, and by the general one."""

from dataclasses import replace

from by_autograd import expected_cdam, logit, seeded
from comparing import all_same
from torch import nn

from captum_ext import CDAM, IntegratedCDAM, SmoothCDAM, without_closed_form


def way(case):
    return CDAM(case.model).path(case.inputs, additional_forward_args=case.forward_args).way


def explained(case):
    given = (case.inputs, 1, case.forward_args, True)
    return [
        CDAM(case.model).attribute(*given),
        IntegratedCDAM(case.model).attribute(*given, n_steps=4),
        SmoothCDAM(case.model).attribute(*given, nt_samples=3, generator=seeded()),
    ]


def is_right(case):
    """Compares all methods with the general way, and CDAM with plain autograd."""
    with without_closed_form():
        expected = explained(case)
    actual = explained(case)
    all_same(actual, expected)
    at_projection = as_read_by_the_projection(case)
    all_same(actual[:1], [expected_cdam(at_projection, logit(at_projection, 1))])
    return actual


def as_read_by_the_projection(case):
    """The case with its tokens where the last block's projection reads them."""
    blocks = getattr(case.model, "blocks", None)
    if blocks is None or not hasattr(blocks[-1].attn, "qkv") or not isinstance(blocks[-1].attn.qkv, nn.Linear):
        return case
    return replace(case, site=blocks[-1].attn.qkv, enters=True)
