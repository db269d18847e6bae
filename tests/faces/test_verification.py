"""Figures of verification and identification, against scikit-learn and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_models.faces.verification import (
    match_ranks,
    metrics,
    most_confused,
    pair_similarities,
    roc,
    stranger_similarities,
    ten_fold_accuracy,
    threshold_at,
    verify_pairs,
)


def scores(seed, genuine=60, impostor=500):
    draw = torch.Generator().manual_seed(seed)
    cosines = torch.randn(genuine, generator=draw) * 0.3 + 0.4, torch.randn(impostor, generator=draw) * 0.3
    # Rounded, so that there are ties, also between the two kinds.
    return tuple((values.clamp(-1, 1) * 50).round() / 50 for values in cosines)


@pytest.mark.parametrize("seed", range(10))
def test_roc_auc_eer_and_tar_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    genuine, impostor = scores(seed)
    truth, values = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))], np.r_[genuine, impostor]
    far, tar, _ = metrics.roc_curve(truth, values)
    curve = roc(genuine, impostor)
    assert curve.area() == pytest.approx(metrics.roc_auc_score(truth, values), abs=1e-6)
    fine = np.linspace(0, 1, 200_001)
    gap = fine + np.interp(fine, far, tar) - 1
    assert curve.equal_error_rate() == pytest.approx(fine[np.abs(gap).argmin()], abs=1e-5)
    for rate in (1e-2, 1e-3):
        assert curve.tar_at(rate) == pytest.approx(tar[far <= rate].max(), abs=1e-6)


def test_the_ends_of_the_scale():
    apart = roc(torch.tensor([0.9, 0.8]), torch.tensor([0.1, -1.0]))
    assert (apart.area(), apart.equal_error_rate(), apart.tar_at(0)) == (1, 0, 1)
    wrong = roc(torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 1.0]))
    assert (wrong.area(), wrong.equal_error_rate(), wrong.tar_at(0.4)) == (0, 1, 0)
    same = roc(torch.tensor([0.5]), torch.tensor([0.5]))
    assert (same.area(), same.equal_error_rate()) == (0.5, 0.5)


def test_a_threshold_accepts_no_more_than_its_share():
    impostor = torch.linspace(-0.5, 0.5, 101)
    for far, accepted in ((0, 0), (0.009, 0), (0.01, 1), (0.5, 50), (1, 101)):
        assert int((impostor >= threshold_at(impostor, far)).sum()) == accepted
    tied = torch.tensor([0.3, 0.3, 0.3, 0.1])
    assert int((tied >= threshold_at(tied, 0.25)).sum()) == 0  # all three or none, and three are too many


def test_pairs_are_counted_once():
    embeddings = F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    genuine, impostor = pair_similarities(embeddings, torch.tensor([0, 0, 1, 1, 1]))
    assert (len(genuine), len(impostor)) == (4, 6)
    assert genuine[0] == pytest.approx(float(embeddings[0] @ embeddings[1]), abs=1e-6)


def at(*degrees):
    return torch.stack([torch.tensor([math.cos(math.radians(d)), math.sin(math.radians(d))]) for d in degrees])


def test_ranks_among_enrolled_people():
    # Person 0 is enrolled at -10 and at 30 degrees, persons 1 and 2 at 90 and 180.
    embeddings = at(-10, 30, 90, 180, 59, 70, 91, 60)
    labels = torch.tensor([0, 0, 1, 2, 0, 0, 2, 9])  # nobody has enrolled person 9
    enrolled = torch.tensor([True] * 4 + [False] * 4)
    assert match_ranks(embeddings, labels, enrolled).tolist() == [1, 2, 3]
    assert match_ranks(at(0, 1, 2, 121), torch.arange(4) % 3, torch.arange(4) < 3).tolist() == [3]


def test_without_anybody_enrolled_each_picture_is_looked_for_among_the_others():
    # Were a picture a part of what its own person looks like, every rank would be 1.
    embeddings, labels = at(0, 100, 60, 75), torch.tensor([5, 5, 7, 7])
    assert match_ranks(embeddings, labels, torch.zeros(4, dtype=torch.bool)).tolist() == [2, 2, 1, 1]
    alone = match_ranks(at(0, 90, 100), torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.bool))
    assert alone.tolist() == [1, 1]  # of person 0 there is nothing to be found by


def test_ten_folds_choose_their_thresholds_from_the_others():
    similarities = torch.tensor([0.9, 0.8, 0.2, 0.1, 0.5, 0.4, 0.3, 0.1])
    same = torch.tensor([True, True, False, False, True, False, True, False])
    folds = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    # Fold 0, with the 0.5 of fold 1 (3 of 4 right there, as with 0.3): 4 of 4. Fold 1, with 0.8 from fold 0: 2 of 4.
    assert ten_fold_accuracy(similarities, same, folds) == pytest.approx(0.75)


def test_an_evaluation_counts_pictures_once_and_leaves_enrolled_ones_out_of_the_pairs():
    embeddings = at(0, 5, 90, 95, 90)
    result = verify_pairs(
        embeddings[[3, 0, 1, 2, 0]],
        torch.tensor([1, 0, 0, 1, 0]),
        torch.tensor([3, 0, 1, 2, 0]),
        torch.tensor([False, True, False, False, True]),
    )
    assert result.indices.tolist() == [0, 1, 2, 3]
    assert result.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(result.embeddings, embeddings[:4])
    assert (len(result.genuine), len(result.impostor)) == (1, 2)
    assert metrics(result)["rank_1"] == 1
    # To known people at 200 and 20 degrees, of which the second is 15 from the picture at 5.
    strangers = stranger_similarities(result.embeddings, result.labels, at(200, 20))
    degrees = torch.tensor([20.0, 15.0, 70.0, 75.0])
    torch.testing.assert_close(strangers, torch.cos(torch.deg2rad(degrees)))
    first, second, values = most_confused(result, same=False, count=1)
    assert (first.tolist(), second.tolist()) == ([1], [2])
    assert values.item() == pytest.approx(math.cos(math.radians(85)), abs=1e-6)
    first, second, _ = most_confused(result, same=True, count=5)
    assert (first.tolist(), second.tolist()) == ([2], [3])
