"""Training with Lightning: the classifier module, one run from data to result file, latent-weight handling."""

from bnn.training.classifier import Classifier as Classifier
from bnn.training.provenance import provenance as provenance
from bnn.training.run import CHECKPOINT as CHECKPOINT
from bnn.training.run import RunError as RunError
from bnn.training.run import load_network as load_network
from bnn.training.run import seed_everything as seed_everything
from bnn.training.run import train as train
