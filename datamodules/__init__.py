"""Data sources as LightningDataModules: one file each."""

from datamodules.cifar10 import CIFAR10DataModule
from datamodules.common.tensors import TensorDataset
from datamodules.faces import FaceDataModule
from datamodules.folder import ImageFolderDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.timeseries import TimeSeriesDataModule

__all__ = [
    "CIFAR10DataModule",
    "FaceDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "TensorDataset",
    "TimeSeriesDataModule",
]
