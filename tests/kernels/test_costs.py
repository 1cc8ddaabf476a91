"""Which sums layers of several planes take: built in, measured on this machine, or as asked for."""

import json
import re

import numpy as np
import pytest
from bnn_kernels.__main__ import main
from bnn_kernels.bits.tensor import pack_levels
from bnn_kernels.compile.isa import cpu_features
from bnn_kernels.model import tune
from bnn_kernels.ops.filters import Filters
from bnn_kernels.ops.geometry import Maps
from bnn_kernels.ops.packed_layers import choice, costs
from bnn_kernels.ops.packed_layers.conv2d import PackedConv2d

TWO_BITS = (1, -2)
TIMES = {"pairs": [2, 4, 8], "counts_us": [10.0, 20.0, 40.0], "products_us": [25.0, 15.0, 15.0]}


@pytest.fixture
def setting(monkeypatch):
    """Set environment variables that are read once in a process."""

    def clear():
        costs.measured.cache_clear()
        choice._from_environment.cache_clear()

    def set_to(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        clear()

    yield set_to
    monkeypatch.undo()
    clear()


def here(layers=None, **changed):
    features = cpu_features()
    told = {"cpu": str(features["cpu"]), "isa": features["isa"], "product": tune.product()} | changed
    return costs.Costs(**told, layers=layers or dict.fromkeys(costs.KINDS, TIMES))


def chosen(channels=96, out=(9, 9), planes=TWO_BITS):
    return choice.choose(Filters((32, channels, 3, 3), planes, False, 1), Maps((9, 9), out, False, planes))


@pytest.mark.parametrize(
    ("products", "fewest"),
    [([25, 15, 15], 4), ([5, 15, 15], 2), ([5, 25, 15], 8), ([25, 25, 45], 9), ([25, 20, 40], 4)],
)
def test_products_are_taken_from_where_they_stay_faster(products, fewest):
    assert here(dict.fromkeys(costs.KINDS, TIMES | {"products_us": products})).fewest("linear") == fewest


def test_every_layer_is_of_one_kind():
    def kind(shape, out=(9, 9)):
        return costs.kind_of(Filters(shape, (1,), True, 1), Maps((9, 9), out, True, (1,)))

    assert kind((8, 4, 9, 9), (1, 1)) == "linear"
    assert kind((4096, 2048, 1, 1), (1, 1)) == "large linear"
    assert kind((8, 8, 3, 3)) == "few bits"
    assert kind((8, 9, 3, 3)) == "32 channels"
    assert kind((8, 8, 1, 1)) == "32 channels"
    assert kind((8, 64, 3, 3)) == "64 channels"
    assert kind((8, 65, 3, 3)) == "more channels"


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_eight_bits_of_few_channels_are_multiplied(setting, channels, groups):
    """A first layer, on one channel or three, counted the bits of 64 pairs of planes."""
    setting(BNN_KERNELS_COSTS="built-in")
    planes = (1, 2, 4, 8, 16, 32, 64, -128)
    maps = Maps((9, 9), (9, 9), False, tuple(1 << p for p in range(8)))
    filters = Filters((8 * groups, channels, 3, 3), planes, False, groups)
    assert choice.choose(filters, maps).multiplies


def test_a_measured_file_decides(setting, tmp_path):
    file = tmp_path / "costs.json"
    for products, taken in (([1, 1, 1], True), ([50, 50, 50], False)):
        tune.write(here(dict.fromkeys(costs.KINDS, TIMES | {"products_us": products})), file)
        setting(BNN_KERNELS_COSTS=file)
        assert costs.measured() == costs.Costs.parse(file.read_text(), file)
        found = chosen()
        assert found.multiplies == taken
        assert "measured on this CPU" in found.why
    assert list(tmp_path.iterdir()) == [file]


def test_costs_of_other_products_do_not_count(setting, tmp_path):
    file = tmp_path / "costs.json"
    before = chosen()
    tune.write(here(product="another"), file)
    setting(BNN_KERNELS_COSTS=file)
    assert (chosen().why, chosen().multiplies) == (before.why, before.multiplies)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "indices"),
        ('{"bnn_kernels_costs": 2}', "version 2 is unknown"),
        (here().json().replace("40.0", "-1"), "positive numbers"),
        (here().json().replace('"pairs": [', '"pairs": [3,', 1), "columns"),
        (here(layers={"linear": TIMES}).json(), "large linear"),
        (here({kind: {key: [] for key in TIMES} for kind in costs.KINDS}).json(), "."),
    ],
)
def test_a_damaged_file_is_named(setting, tmp_path, text, message):
    file = tmp_path / "costs.json"
    file.write_text(text)
    setting(BNN_KERNELS_COSTS=file)
    with pytest.raises(ValueError, match=re.escape(f"{file} is no file of costs")) as error:
        chosen()
    assert message in str(error.value)


def test_a_file_of_another_cpu_or_none_is_named(setting, tmp_path, capsys):
    file = tmp_path / "costs.json"
    setting(BNN_KERNELS_COSTS=file)
    with pytest.raises(OSError, match="BNN_KERNELS_COSTS names"):
        chosen()
    with pytest.raises(SystemExit):
        main(["info"])
    assert f"BNN_KERNELS_COSTS names {file}, which cannot be read" in capsys.readouterr().err
    tune.write(here(cpu="8086"), file)
    setting(BNN_KERNELS_COSTS=file)
    with pytest.raises(ValueError, match="was measured on 8086"):
        chosen()


def test_a_users_own_file_is_found(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "cache_root", lambda: tmp_path)
    setting(BNN_KERNELS_COSTS="")
    assert costs.measured() is None
    tune.write(here(), costs.default_file())
    setting(BNN_KERNELS_COSTS="")
    assert costs.measured() == here()
    setting(BNN_KERNELS_COSTS="built-in")
    assert costs.measured() is None


@pytest.mark.parametrize("planes", [(1,), TWO_BITS])
def test_sums_can_be_asked_for(setting, planes):
    generator = np.random.default_rng(0)
    levels = generator.integers(-2, 2, (2, 12, 9, 9))
    weights = generator.integers(-2, 2, (32, 12, 3, 3)) if len(planes) > 1 else generator.integers(0, 2, (32, 12, 3, 3))
    bits = pack_levels(levels, TWO_BITS, False)
    found = []
    for sums in choice.SUMS:
        setting(BNN_KERNELS_SUMS=sums)
        layer = PackedConv2d.from_levels(weights, planes, False, padding=1)
        found.append(layer(bits))
        one = choice.choose(layer.weights, Maps((9, 9), (9, 9), False, TWO_BITS))
        assert one.multiplies == (sums == "products")
        assert "as asked for" in one.why
    np.testing.assert_array_equal(*found)
    setting(BNN_KERNELS_SUMS="both")
    with pytest.raises(ValueError, match="BNN_KERNELS_SUMS must be one of counts, products"):
        chosen()


def test_tune_measures_and_writes(setting, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "SIZES", dict.fromkeys(costs.KINDS, 5))
    monkeypatch.setattr(tune, "PLANES", ((1, 2), (2, 2)))
    monkeypatch.setattr(tune, "BLOCK_SECONDS", 0.001)
    file = tmp_path / "new" / "costs.json"
    main(["tune", "--seconds", "0.001", "--output", str(file)])
    printed = capsys.readouterr().out
    assert f"written: {file}" in printed
    assert all(kind in printed for kind in costs.KINDS)
    setting(BNN_KERNELS_COSTS=file)
    measured = costs.measured()
    assert measured is not None
    assert json.loads(file.read_text())["layers"].keys() == set(costs.KINDS)
    assert all(measured.layers[kind]["pairs"] == [2, 4] for kind in costs.KINDS)
    assert 1 < measured.fewest("linear") < 6


@pytest.mark.parametrize("name", ["file/costs.json", "folder"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_timed(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(tune, "trials", lambda seconds: pytest.fail("it was timed"))
    with pytest.raises(SystemExit):
        main(["tune", "--output", str(tmp_path / name)])
    assert name.partition("/")[0] in capsys.readouterr().err
