"""What the tasks of the arena say is known, is true of their models and samples."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from xai_compare import digit_vit
from xai_compare.known_answers import Conditions, analytic, digits, mosaics, tasks_named, tetrominoes, texts


@pytest.fixture
def conditions(tmp_path):
    return Conditions(samples=8, seed=3, cache=Path(tmp_path), steps=2)


def scored(task, maps, problem):
    return {name: score.measure(maps, problem).mean().item() for name, score in task.scores.items()}


@torch.no_grad()
def test_the_logits_of_the_transformer_made_by_hand_are_the_marked_patches_means(conditions):
    one, two = analytic.one_patch(conditions), analytic.two_patches(conditions)
    for problem, sign in ((one, 0.0), (two, -1.0)):
        means = F.avg_pool2d(problem.inputs[:, 0], 8).flatten(1)
        first, second = (means.gather(1, problem.truth[name][:, None])[:, 0] for name in ("first", "second"))
        expected = first + sign * second
        torch.testing.assert_close(problem.model(problem.inputs), torch.stack([expected, -expected], 1))


def test_the_gradient_of_the_transformer_made_by_hand_is_that_of_a_mean(conditions):
    problem = analytic.two_patches(conditions)
    x = problem.inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.model(x)[:, 0].sum(), x)
    patches = F.avg_pool2d(gradient[:, 0], 8).flatten(1) * 64
    expected = F.one_hot(problem.truth["first"], 16) - F.one_hot(problem.truth["second"], 16)
    torch.testing.assert_close(patches, expected.float(), atol=1e-6, rtol=0)


def test_maps_of_the_truth_score_1_and_turned_ones_0_on_the_patches(conditions):
    problem, (one, two) = analytic.two_patches(conditions), analytic.TASKS
    truth = F.one_hot(problem.truth["first"], 16) - F.one_hot(problem.truth["second"], 16).float()
    maps = F.interpolate(truth.view(-1, 1, 4, 4), scale_factor=8)[:, 0]
    assert scored(one, maps, problem) == {"found": 1.0}
    assert scored(two, maps, problem) == {"signs": 1.0, "both-found": 1.0}
    assert scored(two, -maps, problem) == {"signs": 0.0, "both-found": 0.0}
    assert scored(two, maps.abs(), problem)["signs"] == 0.0


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", ["linear", "rigid", "xor"])
def test_the_mean_of_tetromino_images_of_one_class_differs_only_on_the_masks(kind):
    images, classes, masks = tetrominoes.draw(3000, kind, "white")
    assert masks.flatten(1).sum(1).unique().tolist() == [4 if kind == "rigid" else 8]
    large = F.interpolate(masks[:, None].float(), scale_factor=4).bool()
    inside = images.abs()[large].mean() - images.abs()[~large].mean()
    assert inside > 0.02
    if kind == "linear":
        difference = (images[classes == 0].mean(0) - images[classes == 1].mean(0))[0]
        expected = F.interpolate(
            (tetrominoes.pattern("T", 1, 1) - tetrominoes.pattern("L", 4, 5))[None, None], (32, 32)
        )
        assert torch.equal((difference.abs() > 0.05), expected[0, 0] != 0)
        assert torch.equal(difference.sign()[expected[0, 0] != 0], expected[0, 0][expected[0, 0] != 0])
    if kind == "xor":  # neither class has another mean: no linear model tells them apart
        difference = images[classes == 0].mean(0) - images[classes == 1].mean(0)
        assert difference.abs().max() < 0.1


def test_multiplied_noise_has_a_smaller_spread_on_the_tetromino_of_the_class():
    images, classes, _ = tetrominoes.draw(3000, "multiplicative", "white")
    spread = [images[classes == cls].std(0)[0] for cls in (0, 1)]
    place = F.interpolate(tetrominoes.pattern("T", 1, 1)[None, None], (32, 32))[0, 0] > 0
    ratio = (spread[0] / spread[1])[place]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.3), atol=0.05, rtol=0)  # 1 - alpha


@pytest.mark.sampled(1)
@pytest.mark.parametrize("task", [tetrominoes.TASKS[0], tetrominoes.TASKS[-1], *texts.TASKS], ids=lambda t: t.name)
def test_maps_of_the_mask_score_1_on_tetrominoes_and_words(task, conditions):
    problem = task.make(conditions)
    maps = problem.truth["masks"].float()
    maps = maps[:, None] if task.name == "gender" else F.interpolate(maps[:, None], scale_factor=4)[:, 0]
    assert scored(task, maps, problem) == pytest.approx({"precision": 1.0, "emd": 1.0})
    assert scored(task, 1 - maps, problem)["precision"] == 0.0
    assert scored(task, 1 - maps, problem)["emd"] < 0.9


@pytest.mark.slow
def test_trained_weights_are_kept_and_are_the_same_again(conditions, tmp_path):
    first = texts.problem(conditions).model.state_dict()
    (file,) = tmp_path.glob("reader-*.safetensors")
    before = file.stat().st_mtime_ns
    again = texts.problem(conditions).model.state_dict()
    file.unlink()
    anew = texts.problem(conditions).model.state_dict()
    assert before
    for state in (again, anew):
        assert all(torch.equal(first[name], state[name]) for name in first)


def test_sentences_say_the_gender_in_the_marked_words_only():
    women = {pair[0] for pair in texts.PAIRS}
    for gender in (0, 1):
        for _ in range(50):
            words, says = texts.sentence(gender)
            gendered = {word for pair in texts.PAIRS for word in pair}
            assert [word in gendered for word in words] == says
            assert {word in women for word in words if word in gendered} == {gender == 0}


@pytest.mark.slow
@torch.no_grad()
def test_what_a_removed_digit_changes_is_the_logit_s_loss(conditions):
    problem, (_, task) = digits.parts(conditions), digits.TASKS
    model, masks = digit_vit.load(), problem.truth["masks"]
    for digit in range(3):
        empty = torch.where(masks[:, digit, None], torch.zeros(()), problem.inputs)
        for row, target in enumerate(problem.targets.tolist()):
            loss = model(problem.inputs[row : row + 1])[0, target] - model(empty[row : row + 1])[0, target]
            torch.testing.assert_close(problem.truth["changes"][row, digit], loss, atol=1e-4, rtol=1e-4)
    maps = (masks * problem.truth["changes"][:, :, None, None]).sum(1)
    assert scored(task, maps, problem) == pytest.approx({"agreement": 1.0})
    assert scored(task, -maps, problem) == pytest.approx({"agreement": 0.0})


@pytest.mark.slow
def test_on_scenes_the_digit_asked_for_scores_1_and_the_other_0(conditions):
    problem, (task, _) = digits.scenes(conditions), digits.TASKS
    masks = problem.truth["masks"].float()
    assert scored(task, masks[:, 0], problem) == {"which": 1.0, "inside": 1.0}
    assert scored(task, masks[:, 1], problem) == {"which": 0.0, "inside": 0.0}
    assert scored(task, torch.zeros(8, 48, 48), problem) == {"which": 0.5, "inside": 0.0}


@torch.no_grad()
def test_cells_beyond_the_one_asked_for_cannot_change_its_logit(conditions):
    problem = mosaics.disconnected(conditions)
    mask = problem.truth["mask"][:, None]
    changed = torch.where(mask, problem.inputs, torch.randn(problem.inputs.shape))
    before, after = (problem.model(x).gather(1, problem.targets[:, None]) for x in (problem.inputs, changed))
    torch.testing.assert_close(before, after)
    inside = torch.where(mask, torch.randn(problem.inputs.shape), problem.inputs)
    assert (problem.model(inside).gather(1, problem.targets[:, None]) - before).abs().min() > 1e-6


def test_mosaics_hold_their_cells_row_by_row_and_ask_for_one(conditions):
    cells = torch.arange(4.0).view(1, 4, 1, 1, 1).expand(2, 4, 1, 6, 6)
    images = mosaics.tiled(cells)
    for place in range(4):
        mask = mosaics.cell_mask(torch.tensor([place, place]), 12, 12)
        assert images[:, 0][mask].unique().tolist() == [place]
    problem = mosaics.grid(conditions)
    assert problem.truth["mask"].flatten(1).sum(1).tolist() == [576] * 8


KINDS = ["one-patch", "difference", "digits", "removed-part", "mosaic", "difull"]
KINDS += [f"tetromino-{kind}-white-cnn" for kind in tetrominoes.SIGNAL]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", KINDS)
def test_random_maps_score_what_the_task_says_is_chance(name, tmp_path):
    (task,) = tasks_named(name)
    problem = task.make(Conditions(samples=64, seed=1, cache=Path(tmp_path), steps=1))
    draws = torch.Generator().manual_seed(0)
    maps = [torch.randn(64, *problem.inputs.shape[2:], generator=draws) for _ in range(10)]
    for score in task.scores.values():
        if score.chance == score.chance:
            found = torch.stack([score.measure(one, problem).double() for one in maps])
            error = found.std() / found.numel() ** 0.5
            assert found.mean().item() == pytest.approx(score.chance, abs=4 * error.item() + 1e-3)
            assert 0 <= found.min() <= found.max() <= 1


def test_beginnings_of_names_select_tetrominoes():
    assert [task.name for task in tasks_named("tetromino-xor-white")] == [
        "tetromino-xor-white-cnn",
        "tetromino-xor-white-vit",
    ]
    assert len(tasks_named("tetromino")) == 2 * len(tasks_named("tetrominoes-cnn")) == 16
    assert len(tasks_named(["tetromino-rigid", "one-patch"])) == 5
    with pytest.raises(ValueError, match=r"Unknown task 'removed'.*tetromino-rigid"):
        tasks_named("removed")
