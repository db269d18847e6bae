"""Data sources as LightningDataModules: one file each."""

from datamodules.mnist import MNISTDataModule
from datamodules.tensors import TensorDataset

__all__ = ["MNISTDataModule", "TensorDataset"]
