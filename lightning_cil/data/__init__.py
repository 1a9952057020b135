"""Data as streams of tasks: the protocols, and the parts to build another one."""

from lightning_cil.data.augment import BatchAugment
from lightning_cil.data.base import IncrementalDataModule
from lightning_cil.data.cifar import SplitCIFAR10, SplitCIFAR100
from lightning_cil.data.coco import MultiLabelCOCO
from lightning_cil.data.digits import SplitDigits
from lightning_cil.data.folder import ImageFolderTasks
from lightning_cil.data.imagenet import SplitImageNet
from lightning_cil.data.images import FileImages, TensorImages
from lightning_cil.data.loader import StreamLoader
from lightning_cil.data.manifest import ManifestTasks
from lightning_cil.data.mnist import SplitFashionMNIST, SplitMNIST
from lightning_cil.data.multilabel_digits import MultiLabelDigits
from lightning_cil.data.splits import class_order, task_sizes
from lightning_cil.data.tinyimagenet import SplitTinyImageNet
from lightning_cil.data.voc import MultiLabelVOC

__all__ = [
    "BatchAugment",
    "FileImages",
    "ImageFolderTasks",
    "IncrementalDataModule",
    "ManifestTasks",
    "MultiLabelCOCO",
    "MultiLabelDigits",
    "MultiLabelVOC",
    "SplitCIFAR10",
    "SplitCIFAR100",
    "SplitDigits",
    "SplitFashionMNIST",
    "SplitImageNet",
    "SplitMNIST",
    "SplitTinyImageNet",
    "StreamLoader",
    "TensorImages",
    "class_order",
    "task_sizes",
]
