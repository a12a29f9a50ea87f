"""The comparison of runs, on a terminal and as an HTML page."""

import html.parser
import json
import shutil
from pathlib import Path

import invoke
import pytest
from invoke import assert_refused
from invoke import content as content_of

from experiments import report
from experiments.reports.comparison import compare
from experiments.reports.records import read_record
from experiments.training.run_folder import Workdir

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
RUNS = ("quick-seed0", "small-bfloat16-seed0")
METRICS = "metrics.jsonl"


def run(*arguments):
    return invoke.run(*arguments, program=report)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in RUNS:
        shutil.copytree(RESULTS / name, name)
    return tmp_path


class Page(html.parser.HTMLParser):
    """The rows of a page's tables, and every address that the page would load from."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loaded, self._cell = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self._cell = tag in ("td", "th")
        if self._cell:
            self.rows[-1].append("")
        addresses = ("src", "href", "xlink:href")
        outside = [x for name, x in attrs if name in addresses and x and not x.startswith("#")]
        self.loaded += outside

    def handle_endtag(self, tag):
        self._cell = False

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data


def test_page_holds_table_curves_and_differing_settings_and_loads_nothing(folder):
    scanned = folder / RUNS[1] / "config.json"
    scanned.write_text(json.dumps(json.loads(scanned.read_text()) | {"kernel": "scan"}))
    outcome = run(*RUNS)
    assert outcome.status == 0, outcome.err
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.loaded
    assert "<svg" in text
    rows = {row[0]: row[1:] for row in page.rows}
    for name in RUNS:
        summary = json.loads((folder / name / "summary.json").read_text())
        figures = [f"{summary[f'{split}_perplexity']:.2f}" for split in ("valid", "test")]
        assert rows[name][4:6] == figures
        assert figures[1] in outcome.out
    assert rows["precision"] == ["float32", "bfloat16"]
    assert rows["kernel"] == ["custom_vjp", "scan"]
    assert "batch_size" not in rows


def test_run_that_goes_on_has_its_last_estimate_and_no_test_figure(folder):
    (folder / "quick-seed0" / "summary.json").unlink()
    metrics = folder / "quick-seed0" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)[:2]
    metrics.write_text("".join(lines))
    (line,) = compare({"<run>": read_record(Workdir("quick-seed0"))})
    assert line["epochs"] == "2 of 6"
    assert line["validation"] == f"({json.loads(lines[1])['valid_perplexity_estimate']:.2f})"
    assert line["test"] == ""
    metrics.unlink()
    (line,) = compare({"new": read_record(Workdir("quick-seed0"))})
    assert (line["epochs"], line["validation"]) == ("0 of 6", "")


def test_folders_of_one_name_are_told_apart_by_their_paths_and_names_are_escaped(folder):
    for parent in ("a", "<b>"):
        shutil.copytree("quick-seed0", folder / parent / "quick-seed0")
    assert run("a/quick-seed0", "<b>/quick-seed0", "--page=page.html").status == 0
    text = (folder / "page.html").read_text(encoding="utf-8")
    names = {row[0] for row in Page(text).rows}
    assert {"a/quick-seed0", "<b>/quick-seed0"} <= names
    assert "<b>" not in text


def test_folder_has_its_name_from_within_too_and_no_name_is_mathematics(folder, monkeypatch):
    for name in ("$_$", "_mine"):
        shutil.copytree("quick-seed0", folder / name)
    assert run("$_$", "_mine").status == 0
    picture = (
        Path("report.html").read_text(encoding="utf-8").partition("<svg")[2].partition("</svg>")[0]
    )
    assert "_mine" in picture
    monkeypatch.chdir("quick-seed0")
    assert run(".").status == 0
    assert "quick-seed0" in {
        row[0] for row in Page(Path("report.html").read_text(encoding="utf-8")).rows
    }


def test_names_are_printed_whole(folder):
    names = [f"{'a-long-name-' * 6}{end}" for end in ("first", "second")]
    for name in names:
        shutil.copytree("quick-seed0", folder / name)
    lines = run(*names).out.splitlines()
    column = "".join(line.split("│")[1].strip() for line in lines if "│" in line)
    assert all(name in column for name in names)


def test_what_is_no_run_is_refused_in_a_line(folder):
    assert_refused(run("absent"), "absent: holds no run; name the --workdir of one")
    assert_refused(run(), "error: give RUN... besides the flags; see --help")
    (folder / "quick-seed0" / "config.json").write_text("{}")
    assert_refused(run("quick-seed0"), "quick-seed0: holds a damaged record", "to rewrite it")
    for name, content in (("summary.json", '{"x": 1}'), ("summary.json", "[1]"), (METRICS, "{}\n")):
        shutil.rmtree(folder / "quick-seed0")
        shutil.copytree(RESULTS / "quick-seed0", "quick-seed0")
        (folder / "quick-seed0" / name).write_text(content)
        assert_refused(run("quick-seed0"), "quick-seed0: holds a damaged record", "to rewrite it")
    path = folder / RUNS[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vary": "dropout=0,0.5"}))
    assert_refused(run(RUNS[1]), f"{RUNS[1]}: holds a sweep", "leave it out")
    assert not (folder / "report.html").exists()


def test_page_replaces_no_other_file(folder):
    (folder / "report.html").write_text("mine")
    for page in ("report.html", f"{RUNS[1]}/{METRICS}"):
        before = content_of(folder)
        assert_refused(run(RUNS[1], f"--page={page}"), f"--page={page}: exists and is not a page")
        assert content_of(folder) == before
