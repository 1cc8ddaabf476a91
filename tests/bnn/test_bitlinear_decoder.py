"""The decoder: rotation, causality, the cache, generation, its size, and its training as a language model."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import bnn
from bnn.data import text
from bnn.layers.base import QuantLayer
from bnn.models import BitLinearDecoder
from bnn.models.bitlinear_decoder import rotated, rotation
from bnn.quantizers import AbsmaxActivation, AbsmeanTernary
from bnn.training import Classifier, seed_everything, train

TERNARY = {"weight_quantizer": AbsmeanTernary, "input_quantizer": AbsmaxActivation}
SIZE = {"num_classes": 40, "context": 12, "width": 32, "layers": 2, "heads": 2, "hidden": 48}


def decoder(**options):
    torch.manual_seed(0)
    model = BitLinearDecoder(**SIZE | options)
    for parameter in model.parameters():  # as far from its start as a trained one
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def tokens(*shape):
    return torch.randint(0, SIZE["num_classes"], shape, generator=torch.Generator().manual_seed(1))


def test_the_rotation_is_that_of_complex_numbers():
    cosine, sine = rotation(9, 6)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    place = torch.arange(9)[:, None]
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * place * 10_000.0 ** (-torch.arange(3) / 3))
    torch.testing.assert_close(rotated(x, cosine, sine), torch.cat([turned.real, turned.imag], -1), rtol=0, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    cosine, sine = rotation(30, 8)
    query, key = torch.randn(2, 8)
    products = rotated(query.expand(30, 8), cosine, sine) @ rotated(key.expand(30, 8), cosine, sine).T
    for distance in (0, 3, 11):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, TERNARY])
def test_no_token_sees_a_later_one(options):
    model, x = decoder(**options), tokens(2, 12)
    other = x.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 40
    with torch.no_grad():
        a, b = model(x), model(other)
    assert torch.equal(a[:, :7], b[:, :7])
    assert (a[:, 7:] != b[:, 7:]).any(-1).all()
    with torch.no_grad():
        torch.testing.assert_close(model(x[:, :5]), a[:, :5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [(1,) * 12, (5, 1, 6), (12,)])
def test_steps_with_a_cache_are_the_whole_sequence(cuts):
    model, x = decoder(), tokens(3, 12)
    state, found = model.start(3), []
    with torch.no_grad():
        for part in x.split(cuts, 1):
            logits, state = model.step(part, state)
            found.append(logits)
        torch.testing.assert_close(torch.cat(found, 1), model(x), rtol=1e-4, atol=1e-5)
    place, caches = state
    assert torch.equal(place, torch.full((3, 1), 12))
    assert [[tuple(one.shape) for one in cache] for cache in caches] == [[(3, 12, 2, 16)] * 2] * 2


def test_generation_takes_the_most_probable_token():
    model, x = decoder(), tokens(2, 3)
    found = model.generate(x, 9)
    assert torch.equal(found[:, :3], x)
    with torch.no_grad():
        assert torch.equal(model(found[:, :-1]).argmax(-1)[:, 2:], found[:, 3:])
    # Beyond the context the later half is read again: 7 tokens of the first 12 made the 13th.
    longer = model.generate(x, 40)
    assert torch.equal(longer[:, :12], found)
    with torch.no_grad():
        assert torch.equal(model(longer[:, 6:13]).argmax(-1)[:, -1], longer[:, 13])


def test_generation_draws_by_temperature():
    model, x = decoder(), tokens(1, 3).expand(400, 3)
    drawn = model.generate(x, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, 3]
    again = model.generate(x, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, 3]
    assert torch.equal(drawn, again)
    with torch.no_grad():
        share = F.softmax(model(x[:1])[0, -1] / 2, 0)
    expected = float((share * share.log()).sum())  # the mean log-probability of what is drawn is minus the entropy
    deviation = float((share * (share.log() - expected) ** 2).sum().sqrt()) / 20
    assert abs(float(share[drawn].log().mean()) - expected) < 4 * deviation


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="got width 30 and 4 heads"):
        BitLinearDecoder(width=30, heads=4)
    model = decoder()
    with pytest.raises(ValueError, match="13 tokens are more than the context of 12"):
        model(tokens(1, 13))
    with pytest.raises(IndexError, match="out of range"):
        model.step(tokens(1, 1), model.step(tokens(1, 12), model.start(1))[1])
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(tokens(1, 0), 3)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        model.generate(tokens(1, 1), 3, temperature=-1)


def test_the_size_is_that_of_the_matrices():
    model = BitLinearDecoder(65, **TERNARY)
    each = 4 * 256**2 + 3 * 256 * 688 + 3 * 256 + 688
    assert sum(p.numel() for p in model.parameters()) == 6 * each + 2 * 65 * 256 + 256
    layers = {name for name, module in model.named_modules() if isinstance(module, QuantLayer)}
    assert len(layers) == 6 * 7
    assert not any("head" in name or "embedding" in name for name in layers)


def test_every_parameter_learns():
    model, x = decoder(**TERNARY).train(), tokens(4, 12)
    F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_it_becomes_bits():
    model, x = decoder(**TERNARY, layers=1), tokens(4, 12)
    packed = bnn.convert(model, x)
    report = bnn.check_parity(model, packed, x)
    assert report.first_difference is None
    assert sum(step.exact or step.levels for step in report.steps) >= 7
    with torch.no_grad():
        expected = model(x)
    answers = torch.from_numpy(packed(x.numpy()))
    torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-3)
    assert packed.nbytes < 4 * sum(p.numel() for p in model.parameters())


# -- training ---------------------------------------------------------------------------------------------------------

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def abc(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "abc.txt"
    path.write_text("abcdefgh" * 400)
    return text(str(path), context=16)


def test_a_language_model_learns_and_its_bits_are_measured(abc, tmp_path):
    seed_everything(0)
    model = BitLinearDecoder(8, 16, 32, 1, 2, 32, **TERNARY)
    classifier = partial(Classifier, optimizer=partial(torch.optim.AdamW, lr=0.01))
    done = train(classifier, model, abc, tmp_path, epochs=2, batch_size=8, seed=0, trainer=QUIET)
    assert done.test_bits < 0.5  # 3 bits without what came before
    assert done.test_accuracy > 0.9
    assert (done.validation_examples, done.test_examples) == (abc.count("validation"), abc.count("test"))
    model.eval()
    inputs, labels = next(iter(abc.batches("test", 10_000)))
    with torch.no_grad():
        chances = model(inputs).softmax(-1).gather(-1, labels[..., None])
    assert done.test_bits == pytest.approx(float(-chances.log2().mean()), rel=1e-4)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header == "epoch,train_loss,train_accuracy,validation_accuracy,lr,validation_bits"
    assert math.isfinite(float((tmp_path / "metrics.csv").read_text().splitlines()[-1].split(",")[-1]))


def test_tokens_are_not_mixed(abc, tmp_path):
    classifier = partial(Classifier, optimizer=partial(torch.optim.AdamW, lr=0.01), mixup=0.2)
    model = BitLinearDecoder(8, 16, 32, 1, 2, 32)
    with pytest.raises(ValueError, match=r"of tokens there is no mean: use classifier.mixup=0"):
        train(classifier, model, abc, tmp_path, epochs=1, batch_size=8, seed=0, trainer=QUIET)
