"""MHEX CAM of graphs as an algorithm of torch_geometric's Explainer."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.explain import Explanation
from torch_geometric.explain.algorithm import ExplainerAlgorithm
from torch_geometric.explain.config import MaskType, ModelMode, ModelReturnType

from adapters import MHEX, MHEXSettings, mhex_maps

_MASKS = (None, MaskType.object)


class MHEXExplainer(ExplainerAlgorithm):  # type: ignore[misc] # torch_geometric is untyped
    """What each node contributes to a class at the residual additions of an MHEX model, for PyG's metrics and plots.

        S_v = sum_l alpha^(L - l) sum_k e_k (x + r)_{v, k},    node_mask = max(S, 0) / max_v S

    the maximum being that of a node's graph, and an edge's mask the mean of its ends'. Of one node (`index`) the class
    is that of this node, and nodes that do not reach it score 0. Source: Sun and Liò 2025 (MHEX), section 3.4 and
    appendix E. `MHEXCAM` gives the signed scores S.

    Args:
        settings: `alpha`, `beta`, `gamma_pos`, `gamma_neg` and `activation` of `MHEXCAM.attribute`.

    Raises:
        TypeError: when it explains, if the model is not an MHEX.
        ValueError: if a setting is out of range; when it explains, if the model's task is not the explainer's.

    Example:
        >>> import torch
        >>> from torch_geometric.explain import Explainer
        >>> from torch_geometric.nn import GCN
        >>> from adapters import MHEX
        >>> from captum_ext import MHEXExplainer
        >>> model = MHEX(GCN(4, 8, num_layers=2), num_classes=3, task="node", residual=True)
        >>> config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}
        >>> explainer = Explainer(model, MHEXExplainer(), "model", config, node_mask_type="object")
        >>> explainer(torch.randn(5, 4), torch.tensor([[0, 1, 2], [1, 2, 3]])).node_mask.shape
        torch.Size([5, 1])
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = MHEXSettings(**settings)
        if self.settings.per_layer or self.settings.normalize:
            raise ValueError("`per_layer` and `normalize` are not supported here; use captum_ext.MHEXCAM.")

    def forward(
        self,
        model: nn.Module,
        x: Tensor,
        edge_index: Tensor,
        *,
        target: Tensor,
        index: int | Tensor | None = None,
        **kwargs: Any,
    ) -> Explanation:
        """The explanation of one prediction, or of all; called by `Explainer`."""
        if not isinstance(model, MHEX):
            raise TypeError(f"Expected an adapters.MHEX, whose heads make the maps; got {type(model)}.")
        level = self.model_config.task_level.value
        if level != model.task:
            raise ValueError(f"Expected task_level={model.task!r}, as the model's task is; got {level!r}.")
        asked = target if index is None else _only_class(target[index])
        scores = mhex_maps(model, (x, edge_index), asked, self.settings, kwargs)
        nodes, _ = self._get_hard_masks(model, index if level == "node" else None, edge_index, len(x))
        scores = scores if nodes is None else scores.where(nodes, 0)
        scores = _positive_shares(scores, kwargs.get("batch"))
        edges = None
        if self.explainer_config.edge_mask_type is not None:
            edges = scores[edge_index].mean(0)
        return Explanation(node_mask=scores[:, None] if self.explainer_config.node_mask_type else None, edge_mask=edges)

    def supports(self) -> bool:
        """Can it make the masks that were asked for?"""
        wrong = [
            f"'{name}' to be None or 'object' (got '{mask.value}')"
            for name in ("node_mask_type", "edge_mask_type")
            if (mask := getattr(self.explainer_config, name)) not in _MASKS
        ]
        if self.model_config.mode is not ModelMode.multiclass_classification:
            wrong.append(f"'mode' to be 'multiclass_classification' (got '{self.model_config.mode.value}')")
        if self.model_config.return_type is not ModelReturnType.raw:
            wrong.append(f"'return_type' to be 'raw' (got '{self.model_config.return_type.value}')")
        for what in wrong:
            logging.error(f"'{type(self).__name__}' expects {what}")
        return not wrong


def _only_class(classes: Tensor) -> int:
    found = classes.unique().tolist()
    if len(found) != 1:
        raise ValueError(
            f"Expected `index` of nodes or graphs of one class, got classes {found}: explain them one by one."
        )
    return int(found[0])


def _positive_shares(scores: Tensor, batch: Tensor | None) -> Tensor:
    """Positive scores (nodes,) over the highest of their graph; the others 0."""
    graph = torch.zeros(len(scores), dtype=torch.long, device=scores.device) if batch is None else batch
    positive = scores.clamp(min=0)
    highest = positive.new_zeros(int(graph.max()) + 1).scatter_reduce(0, graph, positive, "amax")[graph]
    return positive / torch.where(highest > 0, highest, 1)
