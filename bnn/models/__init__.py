"""Networks whose quantizers are arguments: each is its own FP32 twin with FullPrecision."""

from bnn.models.digits_cnn import DigitsCNN as DigitsCNN
from bnn.models.lenet5 import LeNet5 as LeNet5
