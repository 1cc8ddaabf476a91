"""What a network would take in a packed file, by the module whose numbers are stored, without building the file."""

import warnings

import torch
from torch import Tensor, nn

from bnn.converter.convert import check_examples, check_model, plan
from bnn.model_copy import copied


def stored_bytes(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Return the bytes that each module takes in the packed file of the network in evaluation, by dotted path.

    Together they are the payload of the file, and more where tensors are equal, of which a file stores one; the network
    is not checked as `bnn.convert` does. What is merged into a layer (batch norm, bias, activation, thresholds on its
    output) counts as the layer's; thresholds that stand alone count where the levels are read. What functions store
    counts as the module's that calls them, "" for the model itself. ConversionError if it cannot be converted.
    """
    # Without the memory of a copy: what sets a parameter's data sets that of the twin's parameter.
    shared = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters() if type(p) is nn.Parameter}
    twin = copied(model, shared).to("cpu", torch.float32).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantizers that wait for training: sizes do not depend on it
        check_model(twin)
        emitted = plan(twin, check_examples(example))
    modules = dict(twin.named_modules(remove_duplicate=False))
    found: dict[str, int] = {}
    for step, owner in zip(emitted.steps, emitted.owners, strict=True):
        path = owner.partition("#")[0]
        while path not in modules:
            path = path.rpartition(".")[0]
        found[path] = found.get(path, 0) + step.nbytes
    return found
