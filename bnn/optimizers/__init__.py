"""Optimizers of networks with binary and real parameters, and what each parameter is."""

from bnn.optimizers.bop import Bop as Bop
from bnn.optimizers.bop2 import Bop2ndOrder as Bop2ndOrder
from bnn.optimizers.composite import CompositeOptimizer as CompositeOptimizer
from bnn.optimizers.proximal import Proximal as Proximal
from bnn.optimizers.roles import ROLES as ROLES
from bnn.optimizers.roles import parameter_groups as parameter_groups
from bnn.optimizers.roles import parameter_roles as parameter_roles
from bnn.optimizers.roles import scale_rates as scale_rates
