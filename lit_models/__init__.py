"""Classic deep-learning architectures as LightningModules: one file each."""

from lit_models.classifier import Classifier
from lit_models.net import Net

__all__ = ["Classifier", "Net"]
