"""The pictures of the concepts: drawn from the code, the same bytes each time."""

from paper_figures import concepts


def test_they_are_drawn_alike_each_time(tmp_path):
    for name in ("one", "two"):
        concepts.main(["--output", str(tmp_path / name)])
    drawn = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert drawn == sorted(f"concept_{name}.png" for name in concepts.DRAWINGS)
    for file in drawn:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
