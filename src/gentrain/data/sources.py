"""Every source, a function that returns a ``DataSet``, under one address: the ``_target_`` of ``conf/data``."""

from gentrain.data.celeba import celeba
from gentrain.data.cifar import cifar10
from gentrain.data.digits import digits
from gentrain.data.folder import folder
from gentrain.data.idx import fashion_mnist, mnist
from gentrain.data.shapes import shapes
from gentrain.data.toys import grid, ring, swissroll

__all__ = ["celeba", "cifar10", "digits", "fashion_mnist", "folder", "grid", "mnist", "ring", "shapes", "swissroll"]
