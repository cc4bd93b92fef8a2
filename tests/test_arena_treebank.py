"""The arena's treebank: trees, truth and scores against numbers by hand, and a whole task on made-up trees."""

import pytest
import torch

from xai_compare import arena
from xai_compare.known_answers import treebank
from xai_compare.known_answers.task import Conditions, Problem
from xai_compare.known_answers.tasks import tasks_named

TREE = "(3 (2 A) (4 (3 (2 very) (3 Good)) (1 (2 -LRB-) (0 dull))))"
GOOD, BAD, THINGS = ["good", "fine", "warm"], ["dull", "bad", "cold"], ["film", "story", "actor"]


def test_phrases_are_those_in_brackets_and_labels_those_of_words():
    tree = treebank.read_tree(TREE)
    assert tree.labels == [2, 2, 3, 2, 0]
    assert tree.whole == (3, ["a", "very", "good", "-lrb-", "dull"])
    assert [(one.label, " ".join(one.words)) for one in tree.phrases] == [
        *((2, "a"), (2, "very"), (3, "good"), (3, "very good"), (2, "-lrb-"), (0, "dull"), (1, "-lrb- dull")),
        *((4, "very good -lrb- dull"), (3, "a very good -lrb- dull")),
    ]


@pytest.mark.parametrize("line", ["A good film", "(3 (2 A) (2 film)", "(3 good))) (2", "()", "(7)"])
def test_other_lines_are_no_trees(line):
    with pytest.raises(ValueError, match=r'Expected a tree as "\(3 \(2 A\)'):
        treebank.read_tree(line)


def test_truth_follows_the_sentences_class():
    trees = [treebank.read_tree(TREE), treebank.read_tree("(0 (3 good) (1 (2 a) (0 bad)))")]
    truth = treebank._truth(trees, torch.tensor([1, 0]))
    words = {name: [row.nonzero()[:, 0].tolist() for row in one] for name, one in truth.items()}
    assert words == {"for": [[2], [2]], "against": [[4], [0]], "neutral": [[0, 1, 3], [1]]}


def test_scores_are_areas_under_the_curve():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 1, 12, generator=generator).mul(2).round()  # with ties
    labels = torch.stack([torch.randperm(12, generator=generator) % 3 for _ in range(6)])
    truth = {name: labels == kind for kind, name in enumerate(("for", "against", "neutral"))}
    given = Problem(torch.nn.Identity(), maps, torch.zeros(6), truth)
    signs, noticed = treebank.told_apart(maps, given), treebank.noticed(maps, given)
    for row, (heat, kinds) in enumerate(zip(maps[:, 0].tolist(), labels.tolist(), strict=True)):
        words = list(zip(heat, kinds, strict=True))
        above = [(a > b) + (a == b) / 2 for a, one in words if one == 0 for b, other in words if other == 1]
        assert signs[row] == pytest.approx(sum(above) / len(above))
        above = [(abs(a) > abs(b)) + (abs(a) == abs(b)) / 2 for a, one in words if one < 2 for b, o in words if o == 2]
        assert noticed[row] == pytest.approx(sum(above) / len(above))


def written(folder, count):
    """Sentences with a word for and a word against, of which the last one decides."""
    generator = torch.Generator().manual_seed(count)

    def chosen(words):
        return words[int(torch.randint(len(words), (), generator=generator))]

    lines = []
    for row in range(count):
        last, first = (4, 0) if row % 2 else (0, 4)
        words = {4: chosen(GOOD), 0: chosen(BAD)}
        thing, other = chosen(THINGS), chosen(THINGS)
        lines.append(
            f"({last} ({first} (2 {thing}) ({first} {words[first]})) ({last} (2 {other}) ({last} {words[last]})))"
        )
    return "\n".join(lines)


@pytest.fixture
def folder(tmp_path):
    for name, count in (("train", 200), ("test", 40)):
        (tmp_path / f"{name}.txt").write_text(written(tmp_path, count), "utf-8")
    return tmp_path


def test_the_model_answers_from_its_embedded_words(folder):
    conditions = Conditions(5, 0, folder / "models", steps=3, options={"data": str(folder)})
    given = treebank.problem(conditions)
    again = treebank.problem(conditions)  # from the kept weights
    assert torch.equal(given.inputs, again.inputs)
    assert given.inputs.shape == (5, 32, 1, treebank.LENGTH)
    assert torch.equal(given.model(given.inputs), again.model(again.inputs))
    assert (given.truth["for"].sum(1) == 1).all()
    assert (given.truth["against"].sum(1) == 1).all()
    right = given.model(given.inputs).argmax(1) == given.targets
    assert right[: int(right.sum())].all()  # these come first
    (folder / "train.txt").write_text(written(folder, 201), "utf-8")
    assert not torch.equal(treebank.problem(conditions).inputs, given.inputs)  # others' weights are not used


@pytest.mark.slow
def test_a_whole_task(folder, tmp_path):
    options = {"sst": {"data": str(folder)}}
    table = arena("sst", ["cdam", "attention"], out=tmp_path / "arena", options=options, limit=12, steps=60)
    found = table[table.score == "signs"].set_index("method")["mean"]
    assert found["cdam"] > 0.9
    assert set(table.method) == {"cdam", "attention", "random"}


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("train", "", "None of the 0 trees of train.txt"),
        ("train", "(2 (2 a) (2 film))", "None of the 1 trees of train.txt has a phrase"),
        ("test", "", "None of the 0 sentences of test.txt"),
        ("test", "(3 (2 a) (3 good))\n(2 (3 good) (1 bad))", "None of the 2 sentences of test.txt can be explained"),
        ("test", "(3 (2 a) " * 45 + "(3 good)" + ")" * 45, "None of the 1 sentences of test.txt"),
    ],
)
def test_trees_of_which_nothing_can_be_asked_are_refused(folder, name, lines, words):
    (folder / f"{name}.txt").write_text(lines, "utf-8")
    conditions = Conditions(5, 0, folder / "models", steps=3, options={"data": str(folder)})
    with pytest.raises(ValueError, match=words):
        treebank.problem(conditions)


def test_it_needs_its_data_and_is_none_of_all(tmp_path):
    assert "sst" not in {task.name for task in tasks_named("all")}
    assert [task.name for task in tasks_named("treebank")] == ["sst"]
    with pytest.raises(ValueError, match=r"--option sst.data=FOLDER; got None"):
        arena("sst", ["ixg"], out=tmp_path / "arena", limit=2)
    with pytest.raises(ValueError, match=r"got '/nowhere'"):
        arena("sst", ["ixg"], out=tmp_path / "arena", limit=2, options={"sst": {"data": "/nowhere"}})
