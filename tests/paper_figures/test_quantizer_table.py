"""The tables of docs/quantizers.md are those of the classes and configs."""

import inspect
from pathlib import Path

import pytest

from bnn import quantizers
from bnn.presets import preset_names
from bnn.quantizers import FullPrecision, Quantizer
from paper_figures import quantizer_table

PAGE = Path(__file__).parents[2] / "docs" / "quantizers.md"


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert quantizer_table.page(text) == text, "run: python -m paper_figures.quantizer_table"


def test_every_class_and_every_config_has_a_row():
    text = PAGE.read_text(encoding="utf-8")
    for name, cls in inspect.getmembers(quantizers, inspect.isclass):
        if issubclass(cls, Quantizer) and cls not in (Quantizer, FullPrecision) and name == cls.__name__:
            assert text.count(f"\n| `{name}`") == 1, name
    for name in preset_names():
        assert text.count(f"\n| `{name}` |") == 1, name
    assert "| `XnorWeight` (`BWN`) | alpha sign(W) | mean\\|W\\| a filter |" in text
    assert "| `lsq2` | 2/2 | LSQ, learned step sizes | `LsqWeight` | `LsqActivation` | yes |" in text


def test_the_command_rewrites_the_tables_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    text = PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("BinaryNet, plain signs", "something else"), encoding="utf-8")
    quantizer_table.main(["--output", str(page)])
    assert page.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("change", [("<!-- table: configs -->", ""), ("table: configs", "table: others")])
def test_a_page_without_its_tables_is_refused(change, tmp_path):
    page = tmp_path / "page.md"
    text = PAGE.read_text(encoding="utf-8").replace(*change)
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="must have a table for each of"):
        quantizer_table.main(["--output", str(page)])
    with pytest.raises(SystemExit, match=r"none\.md"):
        quantizer_table.main(["--output", str(tmp_path / "none.md")])
    assert page.read_text(encoding="utf-8") == text
