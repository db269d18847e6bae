"""Online LDA: against its definition, and over the life of a model."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lit_models.faces import verification
from lit_models.faces.lda import SHRINKAGE, OnlineLDA


def drawn(people, pictures, seed, features=12):
    """Features of people who differ in all directions by 1, and whose pictures do in the first three by 3."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(people).repeat_interleave(pictures)
    spread = torch.tensor([3.0] * 3 + [0.3] * (features - 3))
    values = torch.randn(people, features, generator=draw)[labels]
    return values + torch.randn(len(labels), features, generator=draw) * spread, labels


def covariances(features, labels):
    """The two covariances by their definition, in NumPy; that within people is shrunk."""
    values, owners = features.double().numpy(), labels.numpy()
    within = np.zeros((values.shape[1], values.shape[1]))
    for person in set(owners):
        within += np.cov(values[owners == person].T) * ((owners == person).sum() - 1)
    within /= len(owners) - len(set(owners))
    return within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within)), values.T @ values / len(values)


def trained(features, labels, kept, steps=3):
    model = OnlineLDA(features.shape[1], kept)
    for _ in range(steps):
        model.update(features, labels)
    return model.eval()


def test_all_of_them_make_the_covariance_within_people_1_all_around():
    features, labels = drawn(20, 6, seed=0)
    projection = trained(features, labels, 12).projection.double().numpy()
    within, _ = covariances(features, labels)
    np.testing.assert_allclose(projection @ projection.T, np.linalg.inv(within), rtol=1e-3, atol=1e-4)


def test_those_kept_are_the_directions_of_the_largest_ratio():
    features, labels = drawn(20, 6, seed=0)
    projection = trained(features, labels, 4).projection.double().numpy()
    within, total = covariances(features, labels)
    ratios = np.sort(np.linalg.eigvals(np.linalg.inv(within) @ total).real)[-4:]
    np.testing.assert_allclose(projection.T @ within @ projection, np.eye(4), atol=1e-3)
    found = projection.T @ total @ projection
    scale = ratios / np.diag(found)  # which the running mean has not reached
    np.testing.assert_allclose(scale, scale[0], rtol=1e-3)
    np.testing.assert_allclose(found * scale[0], np.diag(ratios), atol=1e-2)


def test_strangers_are_told_apart_better():
    model = trained(*drawn(20, 6, seed=0), 12)
    features, labels = drawn(30, 6, seed=1)

    def error(embeddings):
        pairs = verification.pair_similarities(F.normalize(embeddings), labels)
        return verification.roc(*pairs).equal_error_rate()

    assert error(features) > 0.25
    assert error(model(features)) < 0.5 * error(features)


@pytest.mark.parametrize("repeats", [1, 3])
def test_with_a_picture_of_each_they_are_principal_components(repeats):
    features, labels = (part.repeat_interleave(repeats, dim=0) for part in drawn(40, 1, seed=0))
    projection = trained(features, labels, 2).projection
    _, _, components = torch.linalg.svd(features, full_matrices=False)
    torch.testing.assert_close((F.normalize(projection, dim=0).T @ components[:2].T).abs().sum(dim=0), torch.ones(2))


def test_a_batch_counts_by_what_it_tells():
    features, labels = drawn(20, 6, seed=0)
    model = OnlineLDA(12, 12)
    model.update(features, labels)
    alone = model.within_class_scatter / model.dof
    model.update(features[::6], labels[::6])  # a picture of each
    torch.testing.assert_close(model.within_class_scatter / model.dof, alone)
    model.update(features[:60], labels[:60])
    assert not torch.allclose(model.within_class_scatter / model.dof, alone)


def test_a_pair_long_ago_tells_as_much_while_nobody_else_has_two_pictures():
    features, labels = drawn(1, 2, seed=0)
    alone, singles = drawn(12, 1, seed=1)
    model = OnlineLDA(12, 12)
    model.update(features, labels)
    expected = (features[0] - features[1]).square().sum().item() / 2
    for _ in range(300):
        model.update(alone, singles)
    model.eval()
    inverse = torch.linalg.inv(model.projection.double() @ model.projection.double().T)
    assert inverse.trace().item() == pytest.approx(expected * (1 + SHRINKAGE), rel=1e-3)


def test_the_map_never_lags_behind_in_a_state_or_an_evaluation():
    features, labels = drawn(20, 6, seed=0)
    model = OnlineLDA(12, 5)
    first = model.projection.clone()
    model.update(features, labels)
    assert torch.equal(model.projection, first)  # it is costly, and training does without
    state = copy.deepcopy(model.state_dict())
    assert not torch.equal(state["projection"], first)
    model.update(features[:60], labels[:60])
    model.eval()
    assert not torch.equal(model.projection, state["projection"])
    model.load_state_dict(state)
    assert torch.equal(model.eval().projection, state["projection"])


def test_a_run_that_diverged_can_be_saved_and_evaluated():
    features, labels = drawn(20, 6, seed=0)
    model = OnlineLDA(12, 5)
    model.update(features / 0, labels)
    assert model.state_dict()["projection"].isnan().all()
    assert model.eval()(features).isnan().all()


def test_a_map_that_was_interrupted_is_computed_again(monkeypatch):
    features, labels = drawn(20, 6, seed=0)
    model = OnlineLDA(12, 5)
    model.update(features, labels)
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", lambda matrix: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            model.eval()
    assert torch.equal(model.state_dict()["projection"], trained(features, labels, 5, steps=1).projection)


def test_statistics_are_never_cast():
    features, labels = drawn(20, 6, seed=0)
    model = trained(features, labels, 5)
    before = copy.deepcopy(model.state_dict())
    model.to(torch.bfloat16)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model(features.bfloat16()).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert trained(features, labels, 5)(features).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
