"""Training in less memory: what binarized activations save for the backward pass, as bits."""

from bnn.memory.packing import ActivationPacking as ActivationPacking
from bnn.memory.packing import Count as Count
from bnn.memory.packing import pack_activations as pack_activations
