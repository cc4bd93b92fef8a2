"""What torch's functions do to the axes of their tensors, by the names under which a function mode sees them."""

from collections.abc import Callable, Mapping
from typing import Any

_CASTS = frozenset(["to", "type", "type_as", "float", "half", "bfloat16", "double"])
MOVED_AXES = frozenset(
    [
        "transpose",
        "permute",
        "t",
        "T",
        "mT",
        "H",
        "mH",
        "adjoint",
        "swapaxes",
        "swapdims",
        "movedim",
        "moveaxis",
        "squeeze",
        "unsqueeze",
    ]
)
"""The same tensor with its axes in another order, or with axes of size 1 more or less."""

PARTS = frozenset(
    [
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "unbind",
    ]
)
"""A tensor cut along one axis."""

VIEWS = (
    MOVED_AXES
    | frozenset(
        [
            "view",
            "reshape",
            "flatten",
            "unflatten",
            "contiguous",
            "clone",
            "view_as",
            "reshape_as",
            "alias",
            "ravel",
        ]
    )
    | _CASTS
)
"""Every element of the result is one of the argument's, and each comes once."""

MOVES = (
    VIEWS
    | PARTS
    | frozenset(
        [
            "roll",
            "pad",
            "__getitem__",
            "select",
            "narrow",
            "cat",
            "concat",
            "concatenate",
            "stack",
            "hstack",
            "vstack",
            "repeat",
            "repeat_interleave",
            "tile",
            "flip",
            "expand",
            "expand_as",
            "index_select",
            "gather",
            "take_along_dim",
            "unfold",
            "detach",
            "dropout",
            "dropout1d",
            "dropout2d",
            "alpha_dropout",
            "pixel_unshuffle",
            "unsafe_chunk",
            "unsafe_split",
        ]
    )
)
"""Every element of the result is one of the arguments', or a constant."""

ELEMENTWISE = _CASTS | frozenset(
    [
        "add",
        "sub",
        "subtract",
        "rsub",
        "mul",
        "multiply",
        "div",
        "divide",
        "true_divide",
        "neg",
        "negative",
        "pow",
        "square",
        "sqrt",
        "rsqrt",
        "exp",
        "exp2",
        "log",
        "log2",
        "log1p",
        "expm1",
        "abs",
        "sign",
        "sin",
        "cos",
        "tan",
        "tanh",
        "tanh_",
        "sigmoid",
        "sigmoid_",
        "relu",
        "relu_",
        "relu6",
        "gelu",
        "silu",
        "silu_",
        "mish",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "softplus",
        "softsign",
        "logsigmoid",
        "clamp",
        "clip",
        "clamp_",
        "clamp_min",
        "clamp_max",
        "minimum",
        "maximum",
        "where",
        "masked_fill",
        "masked_fill_",
        "addcmul",
        "addcdiv",
        "lerp",
        "erf",
        "reciprocal",
        "__add__",
        "__radd__",
        "__sub__",
        "__rsub__",
        "__mul__",
        "__rmul__",
        "__truediv__",
        "__rtruediv__",
        "__neg__",
        "__pow__",
        "__rpow__",
        "add_",
        "sub_",
        "mul_",
        "div_",
        "neg_",
        "exp_",
        "dropout",
        "dropout1d",
        "alpha_dropout",
        "contiguous",
        "clone",
        "detach",
        "threshold",
        "prelu",
        "float_power",
        "nan_to_num",
        "round",
        "floor",
        "logical_not",
        "logical_and",
        "logical_or",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
    ]
)
"""Each element of the result is computed from the elements at its own place, with broadcasting."""

LINEAR = frozenset(["linear", "addmm", "conv1d", "conv2d", "conv3d"])
PRODUCTS = frozenset(["matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "mm", "einsum", "tensordot"])
FACTORS = frozenset(["mul", "mul_", "multiply", "__mul__", "__rmul__"])
SOFTMAXES = frozenset(["softmax", "_softmax", "softmax_"])
BEGINNINGS = SOFTMAXES | frozenset(["scaled_dot_product_attention"])

ABOUT_SHAPES = frozenset(
    [
        "size",
        "dim",
        "numel",
        "nelement",
        "ndimension",
        "stride",
        "storage_offset",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "element_size",
        "get_device",
        "is_pinned",
        "__len__",
        "__hash__",
        "data_ptr",
        "is_inference",
        "is_signed",
        "is_tensor",
        "shape",
        "dtype",
        "device",
        "ndim",
        "itemsize",
        "nbytes",
        "layout",
        "is_cuda",
        "is_cpu",
        "is_nested",
        "is_quantized",
        "is_sparse",
        "is_meta",
        "is_mps",
        "is_xla",
        "is_mkldnn",
        "names",
        "requires_grad",
        "is_leaf",
        "grad",
        "grad_fn",
        "_version",
        "output_nr",
        "_is_view",
        "is_shared",
        "has_names",
        "__dir__",
        "__repr__",
        "is_same_size",
        "_is_zerotensor",
        "is_conj",
        "is_neg",
        "volatile",
        "_backward_hooks",
        "requires_grad_",
        "can_cast",
        "result_type",
        "broadcast_shapes",
        "_has_compatible_shallow_copy_type",
        "is_coalesced",
        "is_inference_mode_enabled",
        "retains_grad",
        "is_sparse_csr",
        "is_vulkan",
        "is_ipu",
        "is_xpu",
        "is_hpu",
        "is_mtia",
        "is_maia",
        "_post_accumulate_grad_hooks",
        "dim_order",
        "untyped_storage",
        "__class__",
    ]
)
"""What these answer does not depend on the values of a tensor."""


def name_of(func: Callable[..., Any]) -> str:
    """The name of a function; of a property, that of the property."""
    name: str = getattr(func, "__name__", "")
    if name == "__get__":
        return str(getattr(getattr(func, "__self__", None), "__name__", ""))
    return name


def may_mutate(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Does a function change one of its arguments, by its name and flags?"""
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return name != "requires_grad_"
    return (
        kwargs.get("out") is not None
        or kwargs.get("inplace") is True
        or (name in _IN_PLACE_FLAG and True in _flags(args))
    )


def name_tells_of_change(name: str) -> bool:
    """May a function change its first argument when called without keywords?"""
    return name == "__setitem__" or name.endswith("_") or name in _IN_PLACE_FLAG


_IN_PLACE_FLAG = frozenset(
    [
        "relu",
        "relu6",
        "silu",
        "mish",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "threshold",
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_alpha_dropout",
        "rrelu",
    ]
)


def _flags(args: tuple[Any, ...]) -> list[bool]:
    """The last positional flag, which is `inplace` where there is one."""
    return [x for x in args[-1:] if isinstance(x, bool)]


CUTS = frozenset(["detach", "detach_", "data"])
"""What cuts gradients."""

SPLITTING = frozenset(["view", "reshape", "unflatten", "transpose", "permute", "movedim", "contiguous"])
"""What splits features into heads."""

FLATTENINGS = frozenset(["view", "reshape", "flatten"])
"""What makes one axis of several."""
