"""How well similarities tell people apart: receiver operating characteristic, error rates, and identification.

Two pictures of one person are a genuine pair, those of two people an impostor pair. A pair is accepted where its
similarity, a cosine in -1..1, is at the threshold or above. FAR, the false-accept rate, is the share of impostor pairs
that are accepted; TAR, the true-accept rate, that of genuine pairs.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from lit_models.training.resume import all_gather

MOST = 5_000  # pictures that all pairs are made of: 12.5 million


class ROC(NamedTuple):
    """A receiver operating characteristic, from the strictest threshold to the laxest.

    Attributes:
        far: `(points,)`, false-accept rates, rising from 0 to 1.
        tar: `(points,)`, true-accept rates, rising from 0 to 1.
    """

    far: Tensor
    tar: Tensor

    def area(self) -> float:
        """The area under the curve: 1 if every genuine pair is more similar than every impostor pair, 0.5 by chance."""
        return torch.trapezoid(self.tar, self.far).item()

    def equal_error_rate(self) -> float:
        """The rate at which as many impostor pairs are accepted as genuine ones are refused, between points a line."""
        gap = self.far + self.tar - 1  # FAR less the share refused: rises from -1 to 1
        after = int((gap >= 0).nonzero()[0])
        before = max(after - 1, 0)
        share = (-gap[before] / (gap[after] - gap[before]).clamp(min=1e-12)).clamp(0, 1)
        return torch.lerp(self.far[before], self.far[after], share).item()

    def tar_at(self, far: float) -> float:
        """The greatest true-accept rate whose false-accept rate is `far` or less."""
        return self.tar[self.far <= far + 1e-8].max().item()  # torchmetrics gives float32


def roc(genuine: Tensor, impostor: Tensor) -> ROC:
    """The characteristic of the similarities of genuine and impostor pairs, each `(pairs,)` and at least one."""
    similarities = torch.cat([genuine, impostor]).double()
    same = torch.cat([torch.ones_like(genuine, dtype=torch.int64), torch.zeros_like(impostor, dtype=torch.int64)])
    # In 0..1, outside of which torchmetrics would take them for logits.
    far, tar, _ = binary_roc(((similarities + 1) / 2).clamp(0, 1), same, validate_args=False)
    return ROC(far.double(), tar.double())


def threshold_at(impostor: Tensor, far: float) -> float:
    """The least threshold at which no more than the share `far` of impostors is accepted.

    Args:
        impostor: `(count,)`, their similarities, at least one.
        far: The share, in 0..1.
    """
    accepted = int(far * len(impostor) + 1e-9)
    if accepted >= len(impostor):
        return -1.0
    refused = impostor.float().sort(descending=True).values[accepted]
    return torch.nextafter(refused, torch.tensor(2.0)).item()


def pair_similarities(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The similarities of all genuine and of all impostor pairs, each `(pairs,)`.

    Args:
        embeddings: `(pictures, dim)`, of length 1.
        labels: `(pictures,)`, who it is.
    """
    first, second = torch.triu_indices(len(labels), len(labels), offset=1)
    similarities, same = (embeddings @ embeddings.T)[first, second], labels[first] == labels[second]
    return similarities[same], similarities[~same]


def own_ranks(embeddings: Tensor, labels: Tensor, enrolled: Tensor) -> Tensor:
    """Which place a picture's own person has among all, by similarity, for every picture that can be looked for.

    A person is as similar as the most similar of their enrolled pictures. Where no picture is enrolled, every picture
    is looked for among all the others.

    Args:
        embeddings: `(pictures, dim)`, of length 1.
        labels: `(pictures,)`, who it is.
        enrolled: `(pictures,)`, bool.

    Returns:
        `(pictures looked for,)`, 1 for the first place; ties count against.
    """
    labels = labels.unique(return_inverse=True)[1]
    people = int(labels.max()) + 1
    leave_out = not enrolled.any()
    gallery = torch.ones_like(enrolled) if leave_out else enrolled
    counts = labels[gallery].bincount(minlength=people)
    probes = counts[labels] > 1 if leave_out else ~enrolled & (counts[labels] > 0)
    similarities = embeddings[probes] @ embeddings[gallery].T
    if leave_out:
        similarities[:, probes] = similarities[:, probes].fill_diagonal_(-torch.inf)
    owners = labels[gallery].expand(len(similarities), -1)
    best = similarities.new_full((len(similarities), people), -torch.inf)
    best = best.scatter_reduce(1, owners, similarities, "amax")  # (pictures looked for, people)
    return (best >= best.gather(1, labels[probes][:, None])).sum(dim=1)


def ten_fold_accuracy(similarities: Tensor, same: Tensor, folds: Tensor) -> float:
    """The share of pairs that are told right, each fold with the threshold that is the best for the other folds.

    Huang, Ramesh, Berg and Learned-Miller, "Labeled Faces in the Wild", 2007.

    Args:
        similarities: `(pairs,)`.
        same: `(pairs,)`, bool: whether a pair is genuine.
        folds: `(pairs,)`, int: which fold a pair is of; two folds or more.
    """
    accuracies = []
    for fold in folds.unique():
        train, test = folds != fold, folds == fold
        order = similarities[train].argsort(descending=True)
        ranked = same[train][order].long()
        right = ranked.cumsum(0) + (1 - ranked).sum() - (1 - ranked).cumsum(0)  # where the first so many are accepted
        threshold = similarities[train][order][right.argmax()]
        accuracies.append(((similarities[test] >= threshold) == same[test]).double().mean())
    return torch.stack(accuracies).mean().item()


class Evaluation(NamedTuple):
    """Pictures that were evaluated, in the order of their places in the data, and how similar their pairs are.

    Attributes:
        embeddings: `(pictures, dim)`, of length 1.
        labels: `(pictures,)`, who it is.
        places: `(pictures,)`, where in the data a picture stands.
        enrolled: `(pictures,)`, bool: those that others are identified by, which were trained on.
        genuine: `(pairs,)`, the similarities of all genuine pairs of pictures that are not enrolled.
        impostor: `(pairs,)`, those of all impostor pairs.
    """

    embeddings: Tensor
    labels: Tensor
    places: Tensor
    enrolled: Tensor
    genuine: Tensor
    impostor: Tensor


def compare(embeddings: Tensor, labels: Tensor, places: Tensor, enrolled: Tensor) -> Evaluation:
    """Compares pictures, each `(pictures, ...)`; a picture that comes twice, by its place, counts once."""
    places, inverse = places.unique(return_inverse=True)
    kept = torch.empty_like(places).scatter_(0, inverse, torch.arange(len(inverse)))
    embeddings, labels, enrolled = embeddings[kept], labels[kept], enrolled[kept]
    # Pairs of more would not fit into memory.
    compared = (~enrolled).nonzero().flatten()
    if len(compared) > MOST:
        compared = compared[torch.randperm(len(compared), generator=torch.Generator().manual_seed(0))[:MOST]]
    genuine, impostor = pair_similarities(embeddings[compared], labels[compared])
    return Evaluation(embeddings, labels, places, enrolled, genuine, impostor)


class Collector:
    """Gathers, over an epoch, embeddings that are to be compared."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, ...]] = []

    def update(self, embeddings: Tensor, labels: Tensor, indices: Tensor, enrolled: Tensor) -> None:
        """Adds a batch, each `(batch, ...)`; see Evaluation."""
        self.batches.append(tuple(part.cpu() for part in (embeddings, labels, indices, enrolled)))

    def compute(self, processes: int) -> Evaluation:
        """The evaluation of all processes' batches, and begins a new epoch."""
        batches, self.batches = [self.batches], []
        if processes > 1:
            batches = all_gather(batches, processes)
        return compare(*map(torch.cat, zip(*(batch for own in batches for batch in own), strict=True)))


def stranger_similarities(result: Evaluation, known: Tensor) -> Tensor:
    """How similar every picture is to the most similar of known people and of the other people evaluated.

    Args:
        result: The evaluation.
        known: `(people, dim)`, of length 1: an embedding of each person who is known.

    Returns:
        `(pictures,)`.
    """
    found = []
    for rows, labels in zip(result.embeddings.split(1_000), result.labels.split(1_000), strict=True):
        others = (rows @ result.embeddings.T).masked_fill(labels[:, None] == result.labels, -1.0)
        found.append(torch.cat([others, rows @ known.T], dim=1).amax(dim=1))
    return torch.cat(found)


def most_confused(result: Evaluation, same: bool, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs that are the hardest to tell: the least similar ones of one person, or the most similar ones of two.

    Args:
        result: The evaluation; of many pictures, the first are looked at.
        same: Whether the pairs are of one person.
        count: How many to return at most.

    Returns:
        The two pictures of each pair, as indices into the evaluation, and its similarity, each `(pairs,)`.
    """
    kept = (~result.enrolled).nonzero().flatten()[:MOST]
    embeddings, labels = result.embeddings[kept], result.labels[kept]
    matrix = embeddings @ embeddings.T
    wanted = ((labels[:, None] == labels) == same).triu(diagonal=1)
    hardness = torch.where(wanted, -matrix if same else matrix, -torch.inf).flatten()
    hardest = hardness.topk(min(count, int(wanted.sum()))).indices
    first, second = hardest // len(kept), hardest % len(kept)
    return kept[first], kept[second], matrix[first, second]


def metrics(result: Evaluation, pairs: Any = None) -> dict[str, float]:
    """The figures of an evaluation by name, all shares in 0..1; those that it does not allow are left out.

    They are `auc`, `eer`, `tar_at_far_1e-2` and `tar_at_far_1e-3` over all pairs, `rank_1` and `rank_5`, the share of
    pictures whose own person is the most similar one, or among the five most similar ones, and `ten_fold_accuracy`
    with published `pairs`, which tell of each pair the `first` and the `second` picture by their places, from 0,
    whether they are of the `same` person, and its fold (`folds`).
    """
    found = {}
    if len(result.genuine) and len(result.impostor):
        curve = roc(result.genuine, result.impostor)
        found = {"eer": curve.equal_error_rate(), "auc": curve.area()}
        found |= {"tar_at_far_1e-2": curve.tar_at(1e-2), "tar_at_far_1e-3": curve.tar_at(1e-3)}
    ranks = own_ranks(result.embeddings, result.labels, result.enrolled)
    if len(ranks):
        found |= {f"rank_{place}": (ranks <= place).double().mean().item() for place in (1, 5)}
    if pairs is not None and int(max(pairs.first.max(), pairs.second.max())) < len(result.embeddings):
        similarities = (result.embeddings[pairs.first] * result.embeddings[pairs.second]).sum(dim=1)
        found["ten_fold_accuracy"] = ten_fold_accuracy(similarities, pairs.same, pairs.folds)
    return found
