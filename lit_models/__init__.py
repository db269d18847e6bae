"""Classic deep-learning architectures as LightningModules: one file each."""

from lit_models.classifier import Classifier
from lit_models.cnn import CNN
from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.net import Net
from lit_models.rnn import RNN
from lit_models.rnn_classifier import RNNClassifier
from lit_models.training.checkpoint import load

__all__ = ["CNN", "RNN", "Classifier", "FaceEmbedder", "Net", "RNNClassifier", "load"]
