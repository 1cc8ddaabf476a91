"""What a packed network is timed beside: the same topology with FP32 layers in PyTorch and in OpenVINO."""

import copy
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Peer = Callable[[], Any]


def frozen(model: nn.Module, example: Tensor, file: Path | None = None) -> Any:
    """Return the model as a frozen graph with batch norm folded into convolutions, optimized for this machine.

    file: write the frozen graph there first; the optimized one cannot be saved.
    """
    with warnings.catch_warnings():
        # torch.jit is deprecated in favour of torch.compile, which takes minutes a network and shape on a CPU.
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = torch.jit.freeze(torch.jit.trace(model, example))
        if file is not None:
            torch.jit.save(graph, str(file))
        return torch.jit.optimize_for_inference(graph)


def _with_affine_norms(model: nn.Module) -> nn.Module:
    """Return a copy whose batch norms all have a gamma and a beta, 1 and 0 where they had none: the same function.

    PyTorch's optimized graphs fail on others.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not module.affine:
            module.affine = True
            module.weight = nn.Parameter(torch.ones(module.num_features))
            module.bias = nn.Parameter(torch.zeros(module.num_features))
    return model


def _openvino(model: nn.Module, example: Tensor, threads: int) -> Callable[[np.ndarray], Any]:
    import openvino

    from experiments.engines.open_vino import compiled

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its tracing
        graph = openvino.convert_model(model, example_input=example, input=list(example.shape))
    request = compiled(graph, threads).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]


def has_openvino() -> bool:
    """Say whether the optional extra `peers` is installed."""
    return importlib.util.find_spec("openvino") is not None


def make_peers(twin: nn.Module, images: Tensor, threads: int, has_peer: bool) -> dict[str, Peer]:
    """Return functions of no arguments that run the FP32 twin on these images, each checked against the plain twin.

    twin: in evaluation mode. threads: for OpenVINO; PyTorch's are set already. has_peer: build OpenVINO's too.
    RuntimeError if one of them gives other outputs.
    """
    twin = _with_affine_norms(twin)
    graph = frozen(twin, images)
    peers: dict[str, Peer] = {"eager": lambda: twin(images), "frozen": lambda: graph(images)}
    if images.ndim == 4:  # maps have two layouts
        last = copy.deepcopy(twin).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        given = images.to(memory_format=torch.channels_last)
        graph_last = frozen(last, given)
        peers |= {"eager, channels last": lambda: last(given), "frozen, channels last": lambda: graph_last(given)}
    if has_peer:
        infer, array = _openvino(twin, images, threads), images.numpy()
        peers["openvino"] = lambda: infer(array)
    with torch.inference_mode():
        expected = twin(images)
        for name, peer in peers.items():
            found = torch.as_tensor(peer())
            if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
                raise RuntimeError(f"{name} gives other outputs than the FP32 network: nothing to time")
    return peers
