"""Data sets with fixed splits: images and text."""

from bnn.data.arrays import arrays as arrays
from bnn.data.augment import RandomCropFlip as RandomCropFlip
from bnn.data.batches import Batches as Batches
from bnn.data.batches import Loader as Loader
from bnn.data.cifar import cifar10 as cifar10
from bnn.data.cifar import cifar100 as cifar100
from bnn.data.datasets import datasets as datasets
from bnn.data.digits import digits as digits
from bnn.data.errors import DataError as DataError
from bnn.data.fashion_mnist import fashion_mnist as fashion_mnist
from bnn.data.folder import folder as folder
from bnn.data.gtsrb import gtsrb as gtsrb
from bnn.data.image_data import ImageData as ImageData
from bnn.data.image_data import Normalize as Normalize
from bnn.data.image_data import Split as Split
from bnn.data.mixing import Cutout as Cutout
from bnn.data.mixing import InTurn as InTurn
from bnn.data.mixing import RandomResizedCrop as RandomResizedCrop
from bnn.data.mnist import mnist as mnist
from bnn.data.svhn import svhn as svhn
from bnn.data.text import TextData as TextData
from bnn.data.text import text as text
from bnn.data.text import tinyshakespeare as tinyshakespeare
from bnn.data.training_data import TrainingData as TrainingData
