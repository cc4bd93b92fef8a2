"""The maps of attention weights, and what their tests share."""

import pytest

from captum_ext import AttentionMap, AttentionRollout, PartialLRP, RelevancePropagation

METHODS = [AttentionMap, AttentionRollout, RelevancePropagation, PartialLRP]
WITH_TARGET = METHODS[2:]

each_method = pytest.mark.parametrize("method", METHODS)
each_with_target = pytest.mark.parametrize("method", WITH_TARGET)
