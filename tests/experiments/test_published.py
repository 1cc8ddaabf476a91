"""experiments.published on checkouts written here: what is built, what is counted, and what each outcome is called."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from experiments import cli, published
from experiments.published_trial import build, float64_agreement, most_values, set_buffers, try_network

CODE = """
import sys
import torch
from torch import nn

class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

class Binary(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(Sign.apply(x), Sign.apply(self.weight), self.bias)

class Net(nn.Module):
    def __init__(self, width=16, first=None):
        super().__init__()
        self.layers = nn.Sequential(first or nn.Linear(8, width), Binary(width, 32), nn.BatchNorm1d(32), Binary(32, 4))
        self.register_buffer("scale", torch.ones(1))
    def forward(self, x):
        return self.layers(x) * self.scale.cuda()

class Branches(Net):
    def forward(self, x):
        return super().forward(x) if x.max() > 0 else x

def words():
    return sys.argv[1:]
"""


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "someone+something"
    folder.mkdir()
    (folder / "nets_of_a_test.py").write_text(CODE)
    return tmp_path


def network(name, **more):
    given = {"repository": "someone/something", "commit": "c", "folder": ".", "class": f"nets_of_a_test:{name}"}
    return {**given, "arguments": {}, "argv": [], "buffers": {}, "shape": [8], "label": "1/1", **more}


def test_arguments_may_be_networks_of_the_repository(sources):
    first = {"class": "torch.nn:Linear", "in_features": 8, "out_features": 5}
    net = build(sources / "someone+something", "nets_of_a_test:Net", {"width": 5, "first": first})
    assert [m.weight.shape[0] for m in net.layers if isinstance(m, nn.Linear)] == [5, 32, 4]


@pytest.mark.parametrize("name", ["nets_of_a_test", "nets_of_a_test:", "nets_of_a_test:words"])
def test_a_name_that_makes_no_network_is_told(sources, name):
    with pytest.raises(ValueError, match=r"module|Module"):
        build(sources / "someone+something", name, {})


def test_buffers_are_set_by_globs():
    norm = nn.Sequential(nn.BatchNorm1d(3))
    set_buffers(norm, {"*.running_var": 2.0})
    assert norm[0].running_var.tolist() == [2.0] * 3 and norm[0].running_mean.tolist() == [0.0] * 3
    with pytest.raises(ValueError, match="wrong"):
        set_buffers(norm, {"wrong": 1.0})


def test_values_are_counted_for_each_row():
    signs = torch.randn(4, 30).sign() * torch.tensor([[1.0], [2], [3], [4]])
    assert most_values(signs) == 2
    assert most_values(torch.randint(0, 4, (2, 64)).float()) == 4
    assert most_values(torch.randn(2, 64)) > 256


@pytest.mark.slow
def test_a_network_is_tried_in_a_process_of_its_own(sources):
    row = network("Net", buffers={"scale": 3.0})
    found = published.tried(row, sources, 20, 300)
    assert (found["layers"], found["on_bits"], found["few_valued_products"], found["inputs"]) == (3, 2, 2, 20), found
    assert published.as_it_stands(row | found) and published.outcome(row | found) == "converts as it stands"
    refused = published.tried(network("Branches"), sources, 4, 300)
    assert published.outcome(network("Branches") | refused).startswith("refused: ") and "input" in refused["refused"]


def test_a_missing_checkout_says_what_to_clone(tmp_path):
    with pytest.raises(ValueError, match=r"clone https://github\.com/someone/something"):
        published.tried(network("Net"), tmp_path, 4, 300)


def test_outcomes_that_are_none():
    row = {"parity": True, "missed": [], "layers": 3, "on_bits": 2, "few_valued_products": 3, "first_difference": None}
    assert not published.as_it_stands(row)
    assert published.outcome(row) == "products of few values in floats: 1"
    differs = {**row, "parity": False, "on_bits": 3, "agreement": 0.985}
    assert published.outcome({**differs, "first_difference": "fc"}) == "differs first at fc"
    assert "98.5%" in published.outcome(differs) and "float64" not in published.outcome(differs)
    assert "98.5% (of PyTorch's in float64: 97.0%)" in published.outcome({**differs, "float64_agreement": 0.97})
    assert published.outcome({**differs, "missed": ["fc: many"]}) == "in floats: fc: many"
    assert published.outcome({"fails": "ImportError: no"}) == "does not run: ImportError: no"


def test_the_summary_counts_networks_and_repositories():
    good = {"repository": "a/b", "parity": True, "missed": [], "on_bits": 1, "few_valued_products": 1}
    rounded = {**good, "repository": "a/d", "parity": False, "first_difference": None, "agreement": 0.9}
    rows = [good, good, {**good, "repository": "a/c"}, rounded, {"repository": "a/e", "fails": "no"}]
    assert published.summary(rows).startswith("3 of 5 networks, of 2 repositories, convert as they stand; in 1 more")


def test_each_listed_network_has_a_commit_and_a_name_of_its_own():
    config = OmegaConf.load(cli.CONFIGS / "published.yaml")
    rows = published.networks(config)
    assert all(len(row["commit"]) == 40 for row in rows)
    assert len({published.name_of(row) for row in rows}) == len(rows)
    assert {row["repository"] for row in rows} == set(config.commits)
    with pytest.raises(ValueError, match="names none of"):
        published.networks(OmegaConf.merge(config, {"only": "nothing"}))


def test_try_network_sees_products_in_floats():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8).sign())

        def forward(self, x):
            return nn.functional.linear(x, self.weight)

    found = try_network(Mixed().eval(), torch.randn(6, 8))
    assert (found["products"], found["few_valued_products"]) == (1, 0)
    assert json.dumps(found)


def test_pytorch_is_held_against_itself_in_float64():
    class OfItsOwnMind(nn.Module):
        def forward(self, x):
            return -x if x.dtype == torch.float64 else x

    x = torch.tensor([[0.0, -1.0], [0.0, -1.0], [2.0, 2.0]])
    assert float64_agreement(OfItsOwnMind(), x) == pytest.approx(1 / 3)

    class Float32(nn.Module):
        def forward(self, x):
            return x @ torch.ones(2, 2)

    assert float64_agreement(Float32(), x) is None
