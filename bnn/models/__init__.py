"""Networks whose quantizers are arguments: each is its own FP32 twin with FullPrecision.

Each has an attribute `input_shape`, the (channels, height, width) that its table is for. The first layer of each has
the options

- stem: "fp32"; or "int8": 8-bit weights with a learned step for each filter (LSQ) on the 256 levels of pixels, an exact
  integer layer when packed.
- pixels: whether, or with which statistics (`bnn.Pixels`), the model takes pixels, uint8 or floats of the same values,
  and normalizes them itself; without it the input is normalized images. With the stem "int8" it always takes pixels.
  `bnn.set_pixels` gives a model its statistics later.
"""

from bnn.models.alexnet import AlexNet as AlexNet
from bnn.models.binary_densenet28 import BinaryDenseNet28 as BinaryDenseNet28
from bnn.models.birealnet18 import BiRealNet18 as BiRealNet18
from bnn.models.bitlinear_decoder import BitLinearDecoder as BitLinearDecoder
from bnn.models.bnn_vgg import BNNVGG as BNNVGG
from bnn.models.darknet_extraction import DarknetExtraction as DarknetExtraction
from bnn.models.digits_cnn import DigitsCNN as DigitsCNN
from bnn.models.ds_cnn import DSCNN as DSCNN
from bnn.models.lenet5 import LeNet5 as LeNet5
from bnn.models.m5 import M5 as M5
from bnn.models.meliusnet22 import MeliusNet22 as MeliusNet22
from bnn.models.mlp import MLP as MLP
from bnn.models.nin import NIN as NIN
from bnn.models.quicknet import QuickNet as QuickNet
from bnn.models.reactnet import ReActNetA as ReActNetA
from bnn.models.real_to_binary import RealToBinaryNet as RealToBinaryNet
from bnn.models.resnet8 import ResNet8 as ResNet8
from bnn.models.resnet18 import ResNet18 as ResNet18
from bnn.models.resnet20 import ResNet20 as ResNet20
from bnn.models.resnet_e18 import ResNetE18 as ResNetE18
from bnn.models.trained_like import trained_like as trained_like
from bnn.models.vgg_small import VGGSmall as VGGSmall
