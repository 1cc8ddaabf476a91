"""Training with Lightning: the classifier module, one run from data to result file, latent-weight handling."""

from bnn.training.checkup import REPORT as REPORT
from bnn.training.checkup import Checkup as Checkup
from bnn.training.classifier import Classifier as Classifier
from bnn.training.classifier import DivergenceError as DivergenceError
from bnn.training.curves import Cosine as Cosine
from bnn.training.curves import CosineRise as CosineRise
from bnn.training.curves import Exponential as Exponential
from bnn.training.curves import ExponentialRise as ExponentialRise
from bnn.training.curves import Linear as Linear
from bnn.training.curves import Step as Step
from bnn.training.curves import curve_lr as curve_lr
from bnn.training.files import whole_file as whole_file
from bnn.training.losses import SquaredHingeLoss as SquaredHingeLoss
from bnn.training.provenance import provenance as provenance
from bnn.training.run import CHECKPOINT as CHECKPOINT
from bnn.training.run import Outcome as Outcome
from bnn.training.run import RunError as RunError
from bnn.training.run import check_trainer as check_trainer
from bnn.training.run import load_network as load_network
from bnn.training.run import read_checkpoint as read_checkpoint
from bnn.training.run import seed_everything as seed_everything
from bnn.training.run import train as train
from bnn.training.schedules import ModuleSchedule as ModuleSchedule
from bnn.training.schedules import OptimizerSchedule as OptimizerSchedule
from bnn.training.schedules import Scheduling as Scheduling
from bnn.training.weight_average import WeightAverage as WeightAverage
