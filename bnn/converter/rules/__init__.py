"""The rules of this package: what modules, functions and ATen operations are made of. Importing it registers them."""

from bnn.converter.rules import attention as attention
from bnn.converter.rules import compare as compare
from bnn.converter.rules import elementwise as elementwise
from bnn.converter.rules import layers as layers
from bnn.converter.rules import normalize as normalize
from bnn.converter.rules import pool as pool
from bnn.converter.rules import quantized as quantized
from bnn.converter.rules import recurrent as recurrent
from bnn.converter.rules import shape as shape
from bnn.converter.rules import transposed as transposed
from bnn.converter.rules import volume as volume
