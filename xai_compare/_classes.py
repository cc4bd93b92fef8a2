"""Which class of the model a name in the data stands for."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

_SHOWN = 20  # rows of a table in a message
_REMEDY = (
    "Give the names of all classes of the model in its order, spelled as in the data: labels=[...], on the command "
    'line --option \'data.labels=["cat", "dog"]\'; or pass a CSV file with columns file and label, the class\'s number.'
)


@dataclass(frozen=True)
class Classes:
    """Names in the data, and the model's classes that they stand for.

    Attributes:
        numbers: The class of each name; empty if some names are the model's labels and others are not.
        labels: How many labels the model has, where the names are some of them; 0: the names are numbered.
        problem: Why the names cannot be used, or "".
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    labels: int = 0
    problem: str = ""

    def misfit(self, count: int) -> str:
        """Why the names do not fit a model of so many classes, or an empty text."""
        if self.problem or not self.numbers or (self.labels or len(self.numbers)) == count:
            return self.problem
        if self.labels:
            return f"Expected the names of all {count} classes of the model as `labels`, got {self.labels}."
        return (
            f"The data have {len(self.numbers)} classes and the model has {count}, so that nothing tells which class "
            f"each name means. In their order: {_table(self.numbers)}. {_REMEDY}"
        )


def classes_of(names: Iterable[str], labels: Sequence[str]) -> Classes:
    """The class of each name: the label of the model that it is.

    If no name is a label, or no labels are known, the names are numbered in their order.

    Args:
        names: All names in the data. Sorted names are numbered as by torchvision.datasets.ImageFolder.
        labels: The model's labels, or none.
    """
    names = list(dict.fromkeys(names))
    found = _matched(names, labels)
    unknown = [name for name in names if len(found[name]) != 1]
    if not any(found.values()):
        return Classes({name: index for index, name in enumerate(names)})
    if unknown:
        return Classes(problem=_unmatched(found, len(unknown), labels))
    return Classes({name: one[0] for name, one in found.items()}, labels=len(labels))


def matches(name: str, labels: Sequence[str]) -> list[int]:
    """The labels that a name may be, as `classes_of` finds them."""
    return _matched([name], labels)[name]


def _table(classes: Mapping[str, object]) -> str:
    rows = [f"{name} -> {which}" for name, which in classes.items()]
    return ", ".join(rows[:_SHOWN] + ([f"... ({len(rows)} in all)"] if len(rows) > _SHOWN else []))


def _unmatched(found: Mapping[str, Sequence[int]], count: int, labels: Sequence[str]) -> str:
    shown = {
        name: one[0] if len(one) == 1 else f"one of the labels {', '.join(map(str, one))}" if one else "no label"
        for name, one in found.items()
    }
    few = ", ".join(map(str, labels[:_SHOWN])) + (", ..." if len(labels) > _SHOWN else "")
    return (
        f"{count} of the {len(found)} names in the data are not one of the model's {len(labels)} labels ({few}): "
        f"{_table(shown)}. Rename them. {_REMEDY}"
    )


def _matched(names: Iterable[str], labels: Sequence[str]) -> dict[str, list[int]]:
    """The labels that each name may be: spelled alike, else alike but for case, blanks, hyphens and underscores.

    A label may list synonyms, as "tench, Tinca tinca".
    """
    exact = _by(labels, lambda label: [label])
    alike = _by(labels, lambda label: [_plain(label)])
    synonyms = _by(labels, lambda label: [_plain(part) for part in label.split(",")])
    return {name: exact.get(name) or alike.get(_plain(name)) or synonyms.get(_plain(name)) or [] for name in names}


def _by(labels: Sequence[str], keys: Callable[[str], list[str]]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for index, label in enumerate(map(str, labels)):
        for key in dict.fromkeys(keys(label)):
            found[key].append(index)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
