"""The samples on which methods agree least, for the gallery."""

from typing import Any

import numpy as np
import pandas as pd

from ._compared import Compared
from ._display import flat
from ._parts import packed, pictures_in
from ._report_agreement import SHOWN
from ._run_folder import RunFolder
from ._samples import Sample


def wanted(folder: RunFolder, model: str, by_sample: pd.DataFrame, gallery: int) -> list[int] | None:
    """The samples with the lowest agreement that the gallery should have, too; None if it has them."""
    lowest = by_sample.dropna(subset=["agreement"])["sample"].head(min(gallery, SHOWN)).to_list()
    there = {one["index"] for one in pictures_in(folder.files, folder.of(model).disagreeing)}
    further = [int(sample) for sample in lowest if sample >= gallery]
    return further if set(further) != there else None


def keep(folder: RunFolder, one: Compared, samples: list[int]) -> None:
    """Write pictures of these samples with their small maps into the gallery."""
    small: dict[int, list[Any]] = {sample: [] for sample in samples}
    for part in folder.parts("small_maps"):
        rows = part[(part.model == one.name) & part["sample"].isin(samples)]
        for sample, method, shape, heat in zip(*(rows[c] for c in ("sample", "method", "shape", "map")), strict=True):
            small[int(sample)].append((method, np.asarray(heat).reshape(shape)))
    targets = folder.table("explanations").drop_duplicates(["model", "sample"]).set_index(["model", "sample"])["target"]
    pictures = []
    for index in samples:
        sample = one.read(index)
        if isinstance(sample, Sample):
            target = int(targets[one.name, index])
            maps = {(method, target): np.atleast_2d(flat(heat[None])[0]) for method, heat in small[index]}
            about = {"model": one.name, "index": index, "name": sample.name, "classes": [target], "asked": sample.asked}
            pictures.append(about | {"image": flat(sample.image.float().cpu().numpy()), "maps": maps})
    folder.files.write(folder.of(one.name).disagreeing, packed(pictures))
