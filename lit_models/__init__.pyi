from lit_models.classifier import Classifier as Classifier
from lit_models.cnn import CNN as CNN
from lit_models.faces.face_embedder import FaceEmbedder as FaceEmbedder
from lit_models.module import LitModule as LitModule
from lit_models.net import Net as Net
from lit_models.rnn import RNN as RNN
from lit_models.rnn_classifier import RNNClassifier as RNNClassifier
from lit_models.training.checkpoint import load as load
