"""The steps of a plan: what each takes, checks and runs. Importing this package registers all of them in `STEPS`."""

from bnn_kernels.steps import binary as binary
from bnn_kernels.steps import cached_attention as cached_attention
from bnn_kernels.steps import elementwise as elementwise
from bnn_kernels.steps import embedding as embedding
from bnn_kernels.steps import float as float
from bnn_kernels.steps import level_matmul as level_matmul
from bnn_kernels.steps import matmul as matmul
from bnn_kernels.steps import normalize as normalize
from bnn_kernels.steps import pack as pack
from bnn_kernels.steps import pool as pool
from bnn_kernels.steps import recurrent as recurrent
from bnn_kernels.steps import resize as resize
from bnn_kernels.steps import shape as shape
from bnn_kernels.steps import thresholds as thresholds
from bnn_kernels.steps import windows as windows
