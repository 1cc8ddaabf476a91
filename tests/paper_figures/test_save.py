"""Figures are written whole or not at all."""

import matplotlib.pyplot as plt
import pytest

from paper_figures import style
from paper_figures.save import save


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.pdf", "new/folder/a.png"])
def test_the_same_numbers_give_the_same_bytes(name, tmp_path):
    found = []
    for _ in range(2):
        figure, axes = style.panels(1, 1, 2)
        axes.plot([1, 2, 3])
        save(figure, tmp_path / name)
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == ["a" + name[-4:]]


def test_pyplot_keeps_no_figure_alive():
    """What a command or a test drops is gone, whether it was saved or not."""
    before = plt.get_fignums()
    figures = [style.panels(1, 2, 2)[0], style.empty(2)]
    assert plt.get_fignums() == before and len(figures) == 2


def test_what_fails_leaves_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure, _ = style.panels(1, 1, 2)

    def torn(target, **options):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", torn)
    with pytest.raises(SystemExit, match=r"a\.png cannot be written: .*No space"):
        save(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_kinds_of_files_are_named(tmp_path):
    figure, _ = style.panels(1, 1, 2)
    with pytest.raises(SystemExit, match=r"should end in \.png, \.svg, \.pdf"):
        save(figure, tmp_path / "a.xyz")
