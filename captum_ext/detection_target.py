"""One label of one detection as a target."""

from typing import Any

from torch import Tensor

from adapters.checks import integer

from ._detections import class_logits, is_detections


class DetectionTarget:
    """The logit of a label in one detection: what the model looks at when one of its queries says this.

    `f = z[query, label]` of a detector's class logits `z`. As for each target of a detector or of a model that
    segments, the tokens are those that the last attention reads from the image: the patches that a query of the decoder
    attends to, not the other queries. Source: the score `f` of Brocki et al. 2024, equations 2 to 6, is any function of
    the output; the decoder's cross attention is that of Carion et al. 2020 (arXiv:2005.12872).

    It can also be called with the output of one image, as targets of pytorch-grad-cam are: then the score of that
    detection.

    Args:
        query: The number of the query, from 0; of OWL-ViT that of the patch, of torchvision's detectors that of the
            detection in their list.
        label: The number of the label; of OWL-ViT that of the text.

    Raises:
        TypeError: if a number is no integer.
        ValueError: if it is negative. Beyond what the model returns: when it is explained.

    Example:
        >>> import torch
        >>> from transformers import YolosConfig, YolosForObjectDetection
        >>> from captum_ext import CDAM, DetectionTarget
        >>> sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        >>> model = YolosForObjectDetection(YolosConfig(**sizes, image_size=[64, 64])).eval()
        >>> CDAM(model).attribute(torch.randn(2, 3, 64, 64), DetectionTarget(query=17, label=1)).shape
        torch.Size([2, 1, 4, 4])
    """

    def __init__(self, query: int, label: int) -> None:
        self.query, self.label = (integer(name, value) for name, value in (("query", query), ("label", label)))
        if min(self.query, self.label) < 0:
            raise ValueError(f"Expected `query` and `label` of at least 0, got {query} and {label}.")

    def __call__(self, output: Any) -> Tensor:
        """The score in the output of one image.

        Args:
            output: Logits (queries, classes), or a dictionary with these (`logits`), as PerImage makes them; or with
                the `boxes`, `labels` and `scores` of torchvision's detectors.

        Returns:
            A number: a logit, or torchvision's score, from 0 to 1.

        Raises:
            ValueError: if there is no such detection.
        """
        if is_detections(output):
            return self._detected(output["scores"], output["labels"])
        logits = output if isinstance(output, Tensor) else class_logits({k: v[None] for k, v in output.items()})[0]
        if logits.dim() != 2 or self.query >= len(logits) or self.label >= logits.shape[1]:
            raise ValueError(f"{self} is out of range: the logits of one image have shape {tuple(logits.shape)}.")
        return logits[self.query, self.label]

    def _detected(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.query >= len(scores):
            raise ValueError(f"{self} is out of range: there are {len(scores)} detections in this image.")
        if int(labels[self.query]) != self.label:
            raise ValueError(f"{self} is not there: detection {self.query} has label {int(labels[self.query])}.")
        return scores[self.query]

    def __repr__(self) -> str:
        return f"DetectionTarget(query={self.query}, label={self.label})"
