"""The report: numbers of the runs in one page that needs nothing else, in a browser too."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from paper_figures import learning_curves, style
from paper_figures.inline_svg import inline_svg
from paper_figures.tradeoff import Point, front

LABEL = "<b>1/1</b> & more"
TINY = ("model.width=4", "batch_size=400", "trainer.enable_progress_bar=false")
ENTRY = "{metric:test_accuracy,value:0.8125,source:a paper,quantizer:xnor,model:DigitsCNN,data:digits}"


class Tables(HTMLParser):
    """Rows of cells of every table, and all that a page would load or link to."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.addresses, self._in_cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in_cell:
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def reported(module_command, tmp_path_factory):
    """(folder of the runs, the page's text): two quantizers, one of them with two seeds, converted once."""
    folder = tmp_path_factory.mktemp("report")
    train = ("experiments.train", "-m", *TINY)
    for arguments in (
        ("quantizer=xnor", f"quantizer.label='{LABEL}'", f"published={ENTRY}", "seed=0,1", "epochs=2"),
        ("quantizer=fp32", "epochs=2"),
    ):
        done = module_command(*train, *arguments, folder=folder)
        assert done.status == 0, done.err
    (run,) = folder.glob("runs/default/xnor/*/seed0")
    done = module_command("experiments.convert", f"run={run}", "parity=4", folder=folder)
    assert done.status == 0, done.err
    (folder / "runs" / "unfinished").mkdir()
    shutil.copy(run / "config.yaml", folder / "runs" / "unfinished")
    done = module_command("experiments.report", "seconds=0.1", folder=folder)
    assert done.status == 0, done.err
    assert "left out: runs/unfinished is not finished" in done.err
    return folder, (folder / "report.html").read_text()


def test_its_numbers_are_those_of_the_runs(reported):
    folder, text = reported
    results, packed, *_, runs = Tables(text).tables
    measured = [json.loads(file.read_text()) for file in sorted(folder.rglob("result.json"))]
    xnor = [result["accuracy"]["test"] for result in measured if result["quantizer"] == "xnor"]
    row = dict(zip(results[0], next(row for row in results if row[2] == "xnor"), strict=True))
    assert row["W/A"] == LABEL and row["seeds"] == "2"
    mean = 100 * sum(xnor) / 2
    assert row["test"] == f"{mean:.2f}"
    # Student's t of one degree of freedom at 95 %: 12.7062; the standard error of two is half their distance.
    assert float(row["±"]) == pytest.approx(12.7062 * 50 * abs(xnor[0] - xnor[1]), abs=0.01)
    assert (row["published"], row["gap"]) == ("81.25", f"{mean - 81.25:+.2f}")
    assert row["verdict"].startswith("short" if mean < 70 else "") and row["status"] == "complete"
    conversion = json.loads(next(folder.rglob("conversion.json")).read_text())
    row = dict(zip(packed[0], next(row for row in packed if row[1] == LABEL), strict=True))
    assert row["file kB"] == f"{conversion['file_bytes'] / 1000:,.1f}"
    assert row["same answers"] == f"{conversion['same_predictions']} of {conversion['test_images']}"
    assert float(row["faster"].removesuffix("x")) == pytest.approx(
        float(row["FP32 µs"].replace(",", "")) / float(row["packed µs"].replace(",", "")), rel=0.02
    )
    assert {row[2] for row in runs[1:]} == {"0", "1"} and len(runs) == 4
    assert [row[-1] for row in runs[1:]] == [
        result["command"] for result in sorted(measured, key=lambda r: (r["quantizer"] != "fp32", r["seed"]))
    ]
    assert "runs/unfinished is not finished" in text


def test_it_is_one_file_without_a_network_and_names_cannot_break_it(reported):
    _, text = reported
    assert {address for address in Tables(text).addresses if not address.startswith("#")} == set()
    assert not re.search(r"url\((?!#)|@import|<script src|<link", text)
    assert "<b>1/1" not in text
    assert text.count("<svg") == 3  # accuracy against bits, two learning curves; one point makes no trade-off


def _browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _chromium(*arguments):
    return subprocess.run(
        [_browser(), "--headless", "--no-sandbox", "--disable-gpu", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
    )


@pytest.mark.skipif(_browser() is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_it_within_its_width_and_sorts(width, reported, tmp_path):
    """What the browser makes of it, asked by a script of the test: sideways overflow, and rows after two clicks."""
    _, text = reported
    ask = """<script>
      const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      const head = [...document.querySelectorAll("#runs + .scroll th")].find(th => th.textContent === "test");
      const column = () => [...document.querySelectorAll("#runs + .scroll tbody tr")].map(r => r.cells[3].textContent);
      head.querySelector("button").click(); const rising = column();
      head.querySelector("button").click(); const falling = column();
      document.getElementById("theme").click();
      const theme = getComputedStyle(document.body).backgroundColor;
      document.body.innerHTML = "<pre id=told>" + JSON.stringify({ wide, rising, falling, theme }) + "</pre>";
    </script>"""
    page = tmp_path / "asked.html"
    page.write_text(text.replace("</body>", f"{ask}</body>"))
    dom = _chromium(f"--window-size={width},900", "--dump-dom", page.as_uri()).stdout
    told = json.loads(re.search(r'<pre id="told">(.*?)</pre>', dom)[1])
    assert told["wide"] <= 0
    numbers = [float(value) for value in told["rising"]]
    assert numbers == sorted(numbers) and told["falling"] == told["rising"][::-1]
    assert told["theme"] == "rgb(21, 23, 26)"
    page.write_text(text)
    picture = tmp_path / "page.png"
    _chromium(f"--window-size={width},900", f"--screenshot={picture}", page.as_uri())
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=nowhere"], "nowhere is no folder"),
        (["runs=."], "no finished run under ."),
        (["output=."], "output=. cannot be written"),
        (["run=runs"], "Did you mean runs?"),
    ],
)
def test_mistakes_are_told(arguments, message, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("experiments.report", *arguments)
    assert done.status == 2 and message in done.err
    assert not list(tmp_path.iterdir())


def test_curves_of_the_figures_are_the_values():
    figure = learning_curves.plot({"a": [[1.0, float("nan"), 3.0], [3.0, float("nan"), 5.0, 7.0]]}, "bits")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert drawn == [([1, 3], [1, 3]), ([1, 3, 4], [3, 5, 7]), ([1, 3], [2, 4])]


def test_the_front_holds_what_nothing_beats():
    points = [Point("a", 4, (0.9,)), Point("b", 2, (0.5, 0.7)), Point("c", 3, (0.6,)), Point("d", 2, (0.6,))]
    assert [point.name for point in front(points)] == ["b", "a"]


def test_an_inline_figure_takes_the_pages_colours():
    figure, axes = style.panels(1, 1, 2)
    axes.plot([1, 2], color=style.BLUE)
    text = inline_svg(figure, 'a "b" < c')
    assert text.startswith('<svg role="img" aria-label="a &quot;b&quot; &lt; c"')
    assert "currentColor" in text and style.DARK not in text and style.BLUE in text
    assert re.search(r"<svg[^>]*viewBox", text) and not re.search(r"<svg[^>]* width=", text)
