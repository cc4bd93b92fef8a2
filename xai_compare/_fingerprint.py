"""Descriptions of values by which runs are compared."""

import functools
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def fingerprint(value: Any) -> Any:
    """A description of a value for JSON, the same in every process for equal values, by which runs are compared.

    Objects are described by their class and the arguments that they keep under their names, as Quantus' metrics do.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): fingerprint(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        listed = [fingerprint(one) for one in value]
        return listed if isinstance(value, list | tuple) else sorted(listed, key=str)  # as sets have no order
    if isinstance(value, Tensor | np.ndarray | np.generic):
        array = np.ascontiguousarray(value.detach().cpu().double() if isinstance(value, Tensor) else value)
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, functools.partial):
        return [fingerprint(value.func), fingerprint(value.args), fingerprint(value.keywords)]
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        kept = {"abs", "normalise", "activation", *inspect.signature(type(value)).parameters} & set(dir(value))
    except ValueError:  # of a type that is not written in Python, as torch.dtype
        return str(value)
    return {"class": fingerprint(type(value)), **{name: fingerprint(getattr(value, name)) for name in sorted(kept)}}
