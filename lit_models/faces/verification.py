"""Metrics of verification and identification: ROC, EER, TAR at FAR, ranks.

Two images of one person are a genuine pair, those of two people an impostor pair. A pair is accepted if its similarity,
a cosine in -1..1, reaches the threshold. FAR, the false-accept rate, is the fraction of impostor pairs that are
accepted; TAR, the true-accept rate, that of genuine pairs.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics.functional.classification import binary_roc

from lit_models.training.resume import all_gather

MAX_IMAGES = 5_000  # compared pairwise: 12.5 million pairs
CHUNK_SIZE = 1_000  # images that are compared with all others at a time


class ROC(NamedTuple):
    """A receiver operating characteristic, from the strictest threshold to the laxest."""

    far: Tensor  # (points,), false-accept rates, rising from 0 to 1
    tar: Tensor  # (points,), true-accept rates, rising from 0 to 1

    def area(self) -> float:
        """Area under the curve: 1 if every genuine pair is more similar than every impostor pair, 0.5 by chance."""
        return torch.trapezoid(self.tar, self.far).item()

    def equal_error_rate(self) -> float:
        """The rate at which FAR equals 1 - TAR, linearly interpolated between the curve's points."""
        gap = self.far + self.tar - 1  # rises from -1 to 1
        after = int((gap >= 0).nonzero()[0])
        before = max(after - 1, 0)
        weight = (-gap[before] / (gap[after] - gap[before]).clamp(min=1e-12)).clamp(0, 1)
        return torch.lerp(self.far[before], self.far[after], weight).item()

    def tar_at(self, far: float) -> float:
        """The highest TAR whose FAR is `far` or less."""
        return self.tar[self.far <= far + 1e-8].max().item()  # torchmetrics gives float32


def roc(genuine: Tensor, impostor: Tensor) -> ROC:
    """The ROC of the similarities of genuine and impostor pairs, each `(pairs,)` and at least one."""
    similarities = torch.cat([genuine, impostor]).double()
    same = torch.cat([torch.ones_like(genuine, dtype=torch.int64), torch.zeros_like(impostor, dtype=torch.int64)])
    # In 0..1, outside of which torchmetrics would take them for logits.
    far, tar, _ = binary_roc(((similarities + 1) / 2).clamp(0, 1), same, validate_args=False)
    return ROC(far.double(), tar.double())


def threshold_at(impostor: Tensor, far: float) -> float:
    """The lowest threshold whose FAR is `far` or less, of similarities of impostors `(count,)`, at least one."""
    accepted = int(far * len(impostor) + 1e-9)
    if accepted >= len(impostor):
        return -1.0
    rejected = impostor.float().sort(descending=True).values[accepted]
    return torch.nextafter(rejected, torch.tensor(2.0)).item()


def pair_similarities(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities of all genuine and of all impostor pairs, each `(pairs,)`, of embeddings `(images, dim)`."""
    first, second = torch.triu_indices(len(labels), len(labels), offset=1)
    similarities, same = (embeddings @ embeddings.T)[first, second], labels[first] == labels[second]
    return similarities[same], similarities[~same]


def match_ranks(embeddings: Tensor, labels: Tensor, enrolled: Tensor) -> Tensor:
    """Rank of the true person, `(probes,)`, for every image whose person is among the others; 1 is the most similar.

    The similarity to a person is that to the most similar of their enrolled images; ties count as worse. If no image
    is enrolled, every image is compared with all others. The arguments are those of VerificationResult.
    """
    labels = labels.unique(return_inverse=True)[1]
    people = int(labels.max()) + 1
    leave_one_out = not enrolled.any()
    gallery = torch.ones_like(enrolled) if leave_one_out else enrolled
    counts = labels[gallery].bincount(minlength=people)
    probes = counts[labels] > 1 if leave_one_out else ~enrolled & (counts[labels] > 0)
    similarities = embeddings[probes] @ embeddings[gallery].T
    if leave_one_out:
        similarities[:, probes] = similarities[:, probes].fill_diagonal_(-torch.inf)
    owners = labels[gallery].expand(len(similarities), -1)
    best = similarities.new_full((len(similarities), people), -torch.inf)
    best = best.scatter_reduce(1, owners, similarities, "amax")  # (probes, people)
    return (best >= best.gather(1, labels[probes][:, None])).sum(dim=1)


def ten_fold_accuracy(similarities: Tensor, same: Tensor, folds: Tensor) -> float:
    """Verification accuracy by cross-validation: each fold with the threshold that is best on the others.

    Huang, Ramesh, Berg and Learned-Miller, "Labeled Faces in the Wild", 2007. Each argument is `(pairs,)`.
    """
    accuracies = []
    for fold in folds.unique():
        train, test = folds != fold, folds == fold
        order = similarities[train].argsort(descending=True)
        ranked = same[train][order].long()
        correct = ranked.cumsum(0) + (1 - ranked).sum() - (1 - ranked).cumsum(0)  # by the number of accepted pairs
        threshold = similarities[train][order][correct.argmax()]
        accuracies.append(((similarities[test] >= threshold) == same[test]).double().mean())
    return torch.stack(accuracies).mean().item()


class VerificationResult(NamedTuple):
    """Embeddings of an evaluation, in the order of the data, and the similarities of their pairs."""

    embeddings: Tensor  # (images, dim), of length 1
    labels: Tensor  # (images,), int64, people
    indices: Tensor  # (images,), int64, positions in the data
    enrolled: Tensor  # (images,), bool: images that were trained on, by which the others are identified
    genuine: Tensor  # (pairs,), similarities of the genuine pairs of images that are not enrolled
    impostor: Tensor  # (pairs,), those of their impostor pairs


def verify_pairs(embeddings: Tensor, labels: Tensor, indices: Tensor, enrolled: Tensor) -> VerificationResult:
    """Verifies all pairs of images, each argument `(images, ...)`; an image that comes twice counts once."""
    indices, inverse = indices.unique(return_inverse=True)
    kept = torch.empty_like(indices).scatter_(0, inverse, torch.arange(len(inverse)))
    embeddings, labels, enrolled = embeddings[kept], labels[kept], enrolled[kept]
    compared = (~enrolled).nonzero().flatten()
    if len(compared) > MAX_IMAGES:  # whose pairs would not fit into memory
        compared = compared[torch.randperm(len(compared), generator=torch.Generator().manual_seed(0))[:MAX_IMAGES]]
    genuine, impostor = pair_similarities(embeddings[compared], labels[compared])
    return VerificationResult(embeddings, labels, indices, enrolled, genuine, impostor)


class EmbeddingCollector:
    """Collects the embeddings of an epoch over batches and processes."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, ...]] = []

    def update(self, trainer: Trainer, batch_idx: int, embeddings: Tensor, labels: Tensor, *more: Tensor) -> None:
        """Adds a batch, each `(batch, ...)`; with `indices` and `enrolled`, see VerificationResult, or without."""
        if batch_idx == 0:
            self.batches.clear()  # an evaluation that failed has left something
        if not more:  # in the order in which a distributed sampler deals them out
            start = sum(len(batch[1]) for batch in self.batches)
            indices = torch.arange(start, start + len(labels)) * trainer.world_size + trainer.global_rank
            more = indices, torch.zeros_like(labels, dtype=torch.bool)
        self.batches.append(tuple(part.cpu() for part in (embeddings, labels, *more)))

    def compute(self, trainer: Trainer) -> VerificationResult:
        """Verifies the images of all processes, and begins a new epoch."""
        processes, self.batches = [self.batches], []
        if trainer.world_size > 1:
            processes = all_gather(processes, trainer.world_size)
        return verify_pairs(*map(torch.cat, zip(*(batch for batches in processes for batch in batches), strict=True)))


def stranger_similarities(embeddings: Tensor, labels: Tensor, known: Tensor | None = None) -> Tensor:
    """How strangers would score, `(images,)`: the similarity to the most similar other person, or one `known`."""
    known = embeddings[:0] if known is None else known
    found = []
    for rows, own in zip(embeddings.split(CHUNK_SIZE), labels.split(CHUNK_SIZE), strict=True):
        others = (rows @ embeddings.T).masked_fill(own[:, None] == labels, -1.0)
        found.append(torch.cat([others, rows @ known.T], dim=1).amax(dim=1))
    return torch.cat(found)


def most_confused(result: VerificationResult, same: bool, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and second image, and similarity, of the hardest genuine (`same`) or impostor pairs, each `(pairs,)`."""
    kept = (~result.enrolled).nonzero().flatten()[:MAX_IMAGES]
    embeddings, labels = result.embeddings[kept], result.labels[kept]
    matrix = embeddings @ embeddings.T
    wanted = ((labels[:, None] == labels) == same).triu(diagonal=1)
    hardness = torch.where(wanted, -matrix if same else matrix, -torch.inf).flatten()
    hardest = hardness.topk(min(count, int(wanted.sum()))).indices
    first, second = hardest // len(kept), hardest % len(kept)
    return kept[first], kept[second], matrix[first, second]


def metrics(result: VerificationResult, pairs: Any = None) -> dict[str, float]:
    """Metrics by name, all in 0..1; those that the images do not allow are left out.

    Over all pairs `auc`, `eer`, `tar_at_far_1e-2` and `tar_at_far_1e-3`; `rank_1` and `rank_5`, the fraction of images
    whose own person is the most similar one, or among the five most similar; with published `pairs`, which have `first`
    and `second`, indices into the data, `same` and `folds`, each `(pairs,)`, also `ten_fold_accuracy`.
    """
    found = {}
    if len(result.genuine) and len(result.impostor):
        curve = roc(result.genuine, result.impostor)
        found = {"eer": curve.equal_error_rate(), "auc": curve.area()}
        found |= {"tar_at_far_1e-2": curve.tar_at(1e-2), "tar_at_far_1e-3": curve.tar_at(1e-3)}
    ranks = match_ranks(result.embeddings, result.labels, result.enrolled)
    if len(ranks):
        found |= {f"rank_{rank}": (ranks <= rank).double().mean().item() for rank in (1, 5)}
    if pairs is not None and int(max(pairs.first.max(), pairs.second.max())) < len(result.embeddings):
        similarities = (result.embeddings[pairs.first] * result.embeddings[pairs.second]).sum(dim=1)
        found["ten_fold_accuracy"] = ten_fold_accuracy(similarities, pairs.same, pairs.folds)
    return found


def evaluate(model: LightningModule, stage: str) -> dict[str, float]:
    """The metrics of what a FaceEmbedder has collected; sets its `result`, and in validation thresholds for FAR 1%."""
    result = model.result = model.collector.compute(model.trainer)
    if model.trainer.sanity_checking:
        return {}
    if stage == "val" and len(result.impostor):
        model.threshold.fill_(threshold_at(result.impostor, 1e-2))
        if model.prototypes is not None and not result.enrolled.any():  # those trained on are no strangers
            known = F.normalize(model.lda(model.prototypes)).cpu()
            strangers = stranger_similarities(result.embeddings, result.labels, known)
            model.stranger_threshold.fill_(threshold_at(strangers, 1e-2))
    pairs = getattr(model.trainer.datamodule, "pairs", None) if stage == "test" else None
    return metrics(result, pairs)
