"""Pruning while a network trains, and networks that are narrower by what was pruned."""

from bnn.pruning.dead_channels import Narrowed as Narrowed
from bnn.pruning.dead_channels import remove_dead_channels as remove_dead_channels
from bnn.pruning.masks import merged_masks as merged_masks
from bnn.pruning.pruning import ChannelPruning as ChannelPruning
from bnn.pruning.pruning import Pruning as Pruning
from bnn.pruning.pruning import WeightPruning as WeightPruning
