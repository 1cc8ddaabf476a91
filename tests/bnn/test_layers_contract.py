"""What stands between quantized layers, and BitLinear: dtypes, copies, one graph for the compiler, no host sync."""

import copy
import io
import pickle

import pytest
import torch

from bnn.layers import BitLinear, Maxout, OutputScale, RPReLU
from bnn.quantizers import DoReFaGradient

MODULES = {
    "maxout": (lambda: Maxout(4), (2, 4, 5, 6)),
    "rprelu": (lambda: RPReLU(4), (2, 4, 5, 6)),
    "output_scale_1": (lambda: OutputScale(4, case=1), (2, 4, 5, 6)),
    "output_scale_4": (lambda: OutputScale(4, 5, 6), (2, 4, 5, 6)),
    "dorefa_gradient": (lambda: DoReFaGradient(2), (2, 4, 5, 6)),
    "bit_linear": (lambda: BitLinear(6, 4, bias=True), (2, 5, 6)),
}
each = pytest.mark.parametrize(("make", "shape"), MODULES.values(), ids=MODULES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def made(make):
    """A module whose parameters are not those of its beginning."""
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def step(module, x):
    """Output, and gradients of the input and of the parameters."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(1)
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters())]


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_and_empty_batches(make, shape, dtype):
    module = made(make).to(dtype)
    for tensor in step(module, torch.randn(shape, dtype=dtype)):
        assert tensor.dtype == dtype
        assert tensor.isfinite().all()
    for tensor in step(module, torch.randn(0, *shape[1:], dtype=dtype)):
        assert tensor.isfinite().all()


@each
def test_autocast(make, shape):
    module = made(make)
    with torch.autocast("cpu", torch.bfloat16):
        results = step(module, torch.randn(shape))
    assert all(tensor.isfinite().all() for tensor in results)
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())


@each
def test_copies_and_state(make, shape):
    module = made(make)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(shape)
    expected = step(module, x)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        assert repr(again) == repr(module)
        assert all(torch.equal(a, b) for a, b in zip(step(again, x), expected, strict=True))


@each
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing does so
def test_a_step_waits_for_no_number_and_is_one_graph(make, shape):
    module, x = made(make), torch.randn(shape)
    expected = step(module, x)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="eager")
    for a, b in zip(step(compiled, x), expected, strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    on_meta = module.to("meta")
    x = torch.empty(shape, device="meta", requires_grad=True)
    on_meta(x).sum().backward()
    assert x.grad.device.type == "meta"
