"""One small model with random weights of every model class that CDAM is meant for, built without any download.

`entries()` lists them without building anything; `entry.make()` builds one, with an input and a target for it.
"""

from .cases import Case, Entry
from .own_models import own_entries
from .timm_models import timm_entries
from .torch_models import torch_entries
from .torchvision_models import torchvision_entries
from .transformers_models import transformers_entries

__all__ = ["Case", "Entry", "entries"]


def entries(group: str | None = None) -> list[Entry]:
    """All entries, or those of one group. Builds nothing."""
    listed = [*timm_entries(), *torchvision_entries(), *transformers_entries(), *torch_entries(), *own_entries()]
    return [entry for entry in listed if group in (None, entry.group)]
