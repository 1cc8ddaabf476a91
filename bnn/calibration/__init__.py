"""Post-training quantization: ranges from some batches, and methods that make up for what quantizing costs."""

from bnn.calibration.adaptive_rounding import adaptive_rounding as adaptive_rounding
from bnn.calibration.batch_norm import reestimate_batch_norm as reestimate_batch_norm
from bnn.calibration.bias_correction import correct_bias as correct_bias
from bnn.calibration.calibrate import calibrate as calibrate
from bnn.calibration.distribution import Distribution as Distribution
from bnn.calibration.equalization import equalize as equalize
from bnn.calibration.folding import fold_batch_norms as fold_batch_norms
from bnn.calibration.histogram import Histogram as Histogram
from bnn.calibration.observers import Entropy as Entropy
from bnn.calibration.observers import MeanSquaredError as MeanSquaredError
from bnn.calibration.observers import MinMax as MinMax
from bnn.calibration.observers import Observer as Observer
from bnn.calibration.observers import Percentile as Percentile
from bnn.calibration.smoothing import smooth as smooth
