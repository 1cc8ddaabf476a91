"""Ranges that observers choose, against plain references, SciPy and the observers of torch.ao."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import bnn
from bnn.calibration import Distribution, Entropy, Histogram, MeanSquaredError, MinMax, Percentile
from bnn.calibration.entropy import entropy
from bnn.calibration.observers import observer_of
from bnn.quantizers.grid import Grid

GRIDS = {
    "signed": lambda bits: Grid(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    "unsigned": lambda bits: Grid(0, 2**bits - 1),
    "affine": lambda bits: Grid(0, 2**bits - 1, has_zero_point=True),
}
BITS = [2, 4, 8]


def skewed(seed=0, count=4000):
    """Values as after a GELU or a hard swish, some far out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator) * 1.5
    x[:5] *= 6
    return torch.nn.functional.gelu(x)


def histogram_of(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def plain_quantized(x, step, zero_point, grid):
    """Jacob et al., equations 1 and 12: codes, rounded and saturated, and back."""
    codes = np.clip(np.rint(np.asarray(x, np.float64) / step), grid.low - zero_point, grid.high - zero_point)
    return codes * step


def error_of(x, low, high, grid):
    step, zero_point = grid.fit(low, high)
    return float(((plain_quantized(x, float(step), float(zero_point), grid) - x.double().numpy()) ** 2).mean())


# -- histograms ----------------------------------------------------------------------------------------------------


def test_a_histogram_does_not_depend_on_how_its_values_come():
    x = torch.cat([skewed(), torch.zeros(100), 50 * torch.randn(3), 1e-3 * torch.randn(500)])
    whole = histogram_of(x).distribution()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    for parts in (x[order].split(7), x.flip(0).split(1000), x[:, None, None].split(333)):
        found = histogram_of(*parts).distribution()
        assert torch.equal(found.counts, whole.counts)
        torch.testing.assert_close(found.values, whole.values, rtol=1e-12, atol=1e-15)
    assert int(whole.counts.sum()) == len(x)
    assert float(whole.low) == float(x.min()) and float(whole.high) == float(x.max())
    torch.testing.assert_close((whole.values * whole.counts).sum(), x.double().sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_bins_are_as_fine_as_promised(scale):
    x = scale * skewed()
    found = histogram_of(x[:9] * 1e-6, x[9:]).distribution()  # from the smallest numbers on
    values, order = found.values[0].sort()
    spread = values.repeat_interleave(found.counts[0, order].long())
    exact = torch.cat([x[:9] * 1e-6, x[9:]]).double().sort().values
    assert float((exact - spread).abs().max()) <= float(exact.abs().max()) / 4096


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram_of(torch.tensor([1.0, float("nan")]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram_of(torch.tensor([1.0, float("-inf")]))


# -- min-max and percentiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_min_max_clips_nothing(kind, bits):
    x, grid = skewed(), GRIDS[kind](bits)
    x = x.abs() if kind == "unsigned" else x
    step, zero_point = grid.fit(*MinMax().range_of(histogram_of(x).distribution(), grid))
    worst = np.abs(plain_quantized(x, float(step), float(zero_point), grid) - x.double().numpy()).max()
    # Half a step of rounding, and as much again for the rounding of the zero point.
    assert worst <= float(step) * (1 if kind == "affine" else 0.5) * (1 + 1e-12)
    assert zero_point == zero_point.round() and 0 <= zero_point <= 2**bits - 1


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.9, 100.0])
def test_percentiles_are_those_of_numpy(percentile):
    x = skewed(count=3989)  # of which no percentile here falls between two values
    plain = x.double().numpy()
    exact, counted = Distribution.of(x[None]), histogram_of(*x.split(50)).distribution()
    for kind, expected in (
        ("signed", np.quantile(np.abs(plain), percentile / 100, method="inverted_cdf")),
        ("unsigned", np.quantile(np.maximum(plain, 0), percentile / 100, method="inverted_cdf")),
    ):
        low, high = Percentile(percentile).range_of(exact, GRIDS[kind](8))
        assert float(high) == expected
        assert float(low) == (-expected if kind == "signed" else 0)
        (_, near) = Percentile(percentile).range_of(counted, GRIDS[kind](8))
        assert abs(float(near) - expected) <= float(x.abs().max()) / 4096
    out = (1 - percentile / 100) / 2
    low, high = Percentile(percentile).range_of(exact, GRIDS["affine"](8))
    assert float(low) == np.quantile(plain, out, method="inverted_cdf")
    assert float(high) == np.quantile(plain, 1 - out, method="inverted_cdf")


# -- mean squared error --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("bits", BITS)
def test_mean_squared_error_is_that_of_a_full_search(kind, bits):
    x, grid = skewed(), GRIDS[kind](bits)
    x = x.relu() if kind == "unsigned" else x
    low, high = MeanSquaredError().range_of(histogram_of(x).distribution(), grid)
    found = error_of(x, low, high, grid)
    least_low, most_high = float(x.min()), float(x.max())
    bound = max(-least_low, most_high)
    shares = np.linspace(0.01, 1, 100 if kind == "affine" else 1000)
    candidates = [(-r * bound if kind == "signed" else 0.0, r * bound) for r in shares]
    if kind == "affine":
        candidates = [(r * least_low, s * most_high) for r in (0.25, 0.5, 0.75, 1.0) for s in shares]
    best = min(error_of(x, *(torch.tensor([end], dtype=torch.float64) for end in ends), grid) for ends in candidates)
    assert found <= best * 1.02
    assert found <= error_of(x, *MinMax().range_of(Distribution.of(x[None]), grid), grid)


def test_each_channel_gets_the_best_of_its_own():
    rows = torch.stack([skewed(seed) * 10.0**seed for seed in range(3)])
    grid = Grid(-8, 7, channels=3)
    low, high = MeanSquaredError().range_of(Distribution.of(rows), grid)
    for row, own_low, own_high in zip(rows, low, high, strict=True):
        expected = MeanSquaredError().range_of(Distribution.of(row[None]), Grid(-8, 7))
        torch.testing.assert_close((own_low[None], own_high[None]), expected, rtol=1e-12, atol=0)


# -- entropy -------------------------------------------------------------------------------------------------------


def plain_divergence(values, counts, step, levels):
    """TensorRT's procedure, bin after bin: clip into the end bins, quantize, spread evenly, compare with SciPy."""
    kept = [(v, c) for v, c in zip(values, counts, strict=True) if c and v != 0]
    low, high = levels
    inside = [i for i, (v, _) in enumerate(kept) if low <= np.rint(v / step) <= high]
    reference = [kept[i][1] for i in inside]
    reference[0] += sum(c for v, c in kept[: inside[0]])
    reference[-1] += sum(c for v, c in kept[inside[-1] + 1 :])
    at = [np.rint(kept[i][0] / step) for i in inside]
    spread = [
        sum(kept[j][1] for j, other in zip(inside, at, strict=True) if other == level) / at.count(level) for level in at
    ]
    return stats.entropy(reference, spread)


@pytest.mark.parametrize("kind", GRIDS)
def test_divergence_is_that_of_the_plain_procedure(kind):
    x, grid = skewed(count=600), GRIDS[kind](4)
    x = x.relu() if kind == "unsigned" else x
    binned = histogram_of(x).distribution().binned()
    values, counts = binned.values[0].numpy(), binned.counts[0].numpy()
    order = np.argsort(values)
    for share in (0.2, 0.5, 1.0):
        low, high = (torch.tensor([share * float(end)], dtype=torch.float64) for end in (x.min(), x.max()))
        step, zero_point = grid.fit(low, high)
        levels = grid.low - float(zero_point), grid.high - float(zero_point)
        expected = plain_divergence(values[order], counts[order], float(step), levels)
        np.testing.assert_allclose(float(entropy(binned, grid, low, high)), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", GRIDS)
def test_entropy_takes_the_least_divergence(kind):
    x, grid = skewed(), GRIDS[kind](8)
    x = x.relu() if kind == "unsigned" else x
    values = histogram_of(x).distribution()
    low, high = Entropy().range_of(values, grid)
    found = float(entropy(values.binned(), grid, low, high))
    bound = torch.maximum(values.high, -values.low) if kind == "signed" else values.high
    least_low = {"signed": -bound, "unsigned": 0 * bound, "affine": values.low}[kind]
    for share in np.arange(1, 51) / 50:
        low_end = least_low if kind == "affine" else share * least_low
        assert found <= float(entropy(values.binned(), grid, low_end, share * bound)) * (1 + 1e-9)
    assert 0 < found < float(entropy(values.binned(), grid, values.low, values.high))
    assert float(high) <= float(x.max())


def test_entropy_of_channels_bins_their_weights():
    rows = torch.stack([skewed(seed) for seed in range(2)])
    low, high = Entropy().range_of(Distribution.of(rows), Grid(-8, 7, channels=2))
    assert ((high > 0) & (high <= rows.abs().amax(1)) & (low == -high)).all()


# -- torch.ao ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import observer

        yield observer


@pytest.mark.parametrize("bits", [4, 8])
def test_min_max_is_that_of_torch_ao(ao, bits):
    x = skewed()
    theirs = ao.MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine, quant_min=0, quant_max=2**bits - 1)
    theirs(x)
    scale, zero_point = theirs.calculate_qparams()
    grid = GRIDS["affine"](bits)
    step, zero = grid.fit(*MinMax().range_of(histogram_of(x).distribution(), grid))
    torch.testing.assert_close(step.float(), scale.reshape(1), rtol=1e-6, atol=0)
    assert int(zero) == int(zero_point)


def test_min_max_of_channels_is_that_of_torch_ao(ao):
    rows = torch.stack([skewed(seed) * 10.0**seed for seed in range(3)])
    theirs = ao.PerChannelMinMaxObserver(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
    )
    theirs(rows)
    scale, _ = theirs.calculate_qparams()
    grid = Grid(-128, 127, channels=3)
    step, _ = grid.fit(*MinMax().range_of(Distribution.of(rows), grid))
    torch.testing.assert_close(step.float(), scale, rtol=1e-6, atol=0)


def test_mean_squared_error_is_no_larger_than_that_of_torch_aos_histogram_observer(ao):
    x, grid = skewed(), GRIDS["affine"](8)
    theirs = ao.HistogramObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    theirs(x)
    scale, zero_point = (float(value) for value in theirs.calculate_qparams())
    step, zero = grid.fit(*MeanSquaredError().range_of(histogram_of(x).distribution(), grid))
    ours, peers = (
        float(((plain_quantized(x, *pair, grid) - x.double().numpy()) ** 2).mean())
        for pair in ((float(step), float(zero)), (scale, zero_point))
    )
    assert ours <= peers * 1.001


# -- names ---------------------------------------------------------------------------------------------------------


def test_what_is_no_observer_is_refused():
    with pytest.raises(ValueError, match="no observer is called 'kl'; there are min_max, percentile, mse, entropy"):
        observer_of("kl")
    with pytest.raises(TypeError, match="an object with range_of"):
        observer_of(MinMax)
    with pytest.raises(ValueError, match="percentile must lie in"):
        Percentile(0.999)
    with pytest.raises(ValueError, match="no quantizer with evenly spaced levels"):
        bnn.calibrate(torch.nn.Linear(2, 2), torch.randn(3, 2), "mse")


@pytest.mark.parametrize("size", [1, 100, 250, 10**6])
@pytest.mark.parametrize("has_zero_point", [False, True])
def test_the_least_squared_error_does_not_depend_on_parts(size, has_zero_point, monkeypatch):
    rows = torch.randn(7, 100, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)[:, None]
    values = Distribution.of(rows)
    parts = values.blocks(size)
    assert [len(part.low) for part in parts] == {1: [1] * 7, 100: [1] * 7, 250: [2, 2, 2, 1]}.get(size, [7])
    assert torch.equal(torch.cat([part.values for part in parts]), values.values)
    grid = Grid(0, 15, True, channels=7) if has_zero_point else Grid(-8, 7, channels=7)
    whole = MeanSquaredError().range_of(values, grid)
    monkeypatch.setattr("bnn.calibration.observers.AT_A_TIME", size)
    assert all(map(torch.equal, MeanSquaredError().range_of(values, grid), whole))
