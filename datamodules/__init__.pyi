from datamodules.cifar10 import CIFAR10DataModule as CIFAR10DataModule
from datamodules.common.tensors import BatchDataset as BatchDataset
from datamodules.faces import FaceDataModule as FaceDataModule
from datamodules.image_folder import ImageFolderDataModule as ImageFolderDataModule
from datamodules.mnist import MNISTDataModule as MNISTDataModule
from datamodules.text import TextDataModule as TextDataModule
from datamodules.timeseries import TimeSeriesDataModule as TimeSeriesDataModule
