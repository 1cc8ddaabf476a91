"""Data sets with fixed splits, held in memory as bytes."""

from bnn.data.augment import RandomCropFlip as RandomCropFlip
from bnn.data.batches import Batches as Batches
from bnn.data.digits import digits as digits
from bnn.data.errors import DataError as DataError
from bnn.data.image_data import ImageData as ImageData
from bnn.data.image_data import Normalize as Normalize
from bnn.data.image_data import Split as Split
from bnn.data.mnist import mnist as mnist
