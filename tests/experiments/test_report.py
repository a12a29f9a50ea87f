"""The comparison of runs, on a terminal and as an HTML page."""

import errno
import html.parser
import io
import json
import os
import re
import shutil
import statistics
from pathlib import Path

import invoke
import pytest
from invoke import assert_refused, start_python, summary_of
from invoke import content as content_of
from model_examples import make
from rich.console import Console

from experiments import ensemble, report, sweep
from experiments.cli.outputs import refuse_to_replace
from experiments.comparisons import page as comparison_page
from experiments.comparisons.lines import (
    Line,
    lines_of_ablation,
    lines_of_runs,
    lines_of_settings,
    lines_of_sweep,
    print_comparison,
)
from experiments.reports.figures import line_styles
from experiments.reports.records import Record, read_record
from experiments.training.run_folder import Workdir
from zaremba_jax.config import override, to_dict
from zaremba_jax.errors import InputError
from zaremba_jax.interop.model_folder import save_folder
from zaremba_jax.presets import QUICK

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
RUNS = ("quick-seed0", "small-bfloat16-seed0")
METRICS = "metrics.jsonl"
# What the page has for the test text of the first of them.
FIGURE = f"{summary_of(RESULTS / RUNS[0])['test_perplexity']:.2f}"


def run(*arguments):
    return invoke.run(*arguments, program=report)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in RUNS:
        shutil.copytree(RESULTS / name, name)
    return tmp_path


def test_page_is_drawn_whatever_shows_the_users_own_figures(folder):
    command = ("-m", "experiments.report", "--page=page.html", *RUNS)
    with start_python(*command, cwd=folder, MPLBACKEND="nonsense") as process:
        _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    assert "<svg" in (folder / "page.html").read_text()


class Page(html.parser.HTMLParser):
    """The text of a page, the rows of its tables, and every address that it would load from."""

    def __init__(self, text):
        super().__init__()
        self.text, self.rows, self.loaded, self._cell = text, [], [], False
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

    @property
    def named(self):
        """The rows by the names that they begin with."""
        return {row[0]: row for row in self.rows}

    @property
    def picture(self):
        return self.text.partition("<svg")[2].partition("</svg>")[0]


def compare(*arguments):
    """What the program prints of the runs, and the page that it writes."""
    outcome = run(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out, Page(Path("report.html").read_text("utf-8"))


def edit(path, **entries):
    """Changes entries of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_page_holds_table_curves_and_differing_settings_and_loads_nothing(folder):
    edit(folder / RUNS[1] / "config.json", kernel="scan")
    out, page = compare(*RUNS)
    assert not page.loaded
    assert "<svg" in page.text
    for name in RUNS:
        summary = summary_of(folder / name)
        figures = [f"{summary[f'{split}_perplexity']:.2f}" for split in ("valid", "test")]
        assert page.named[name][5:7] == figures
        assert figures[1] in out
    assert page.named["precision"][1:] == ["float32", "bfloat16"]
    assert page.named["kernel"][1:] == ["custom_vjp", "scan"]
    assert "batch_size" not in page.named


def test_page_of_one_run_has_all_its_settings_and_a_setting_unknown_of_a_line_is_no_difference():
    flat = to_dict(QUICK)
    name = next(iter(flat))
    alone = comparison_page.html_page([Line(cells={"run": "one"}, settings=flat)], [])
    assert "<h2>Settings</h2>" in alone
    assert all(f"<td>{name}</td>" in alone for name in flat)
    lacking = {key: value for key, value in flat.items() if key != name}
    both = [Line(cells={"run": "one"}, settings=flat), Line(cells={"run": "two"}, settings=lacking)]
    assert "<h2>Settings" not in comparison_page.html_page(both, [])
    both.append(Line(cells={"run": "three"}, settings=flat | {name: "other"}))
    row = f"<td>{name}</td><td>{flat[name]}</td><td></td><td>other</td>"
    assert row in comparison_page.html_page(both, [])


def test_run_that_goes_on_has_the_estimate_that_it_would_end_with_and_no_test_figure(folder):
    (folder / "quick-seed0" / "summary.json").unlink()
    metrics = folder / "quick-seed0" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)[:2]
    metrics.write_text("".join(lines))
    (line,) = lines_of_runs({"<run>": read_record(Workdir("quick-seed0"))})
    assert line.cells["epochs"] == "2 of 6"
    assert line.cells["validation"] == f"({json.loads(lines[1])['valid_perplexity_estimate']:.2f})"
    assert line.cells["test"] == ""
    record = json.loads(lines[1])
    edit(folder / "quick-seed0" / "config.json", keep="best")
    for change in (
        {"valid_perplexity_estimate": 700.0},
        {"valid_perplexity_estimates": [5.0, None, 8.0]},
        {"valid_perplexity_estimates": [6.0, None, 7.0]},
    ):
        metrics.write_text(metrics.read_text() + json.dumps(record | change) + "\n")
    text = metrics.read_text().splitlines(keepends=True)
    for written, estimate in (
        (text[:3], record["valid_perplexity_estimate"]),  # the last is 700
        (text[3:], (5.0 + 7.0) / 2),
    ):
        metrics.write_text("".join(written))
        (line,) = lines_of_runs({"<run>": read_record(Workdir("quick-seed0"))})
        assert line.cells["validation"] == f"({estimate:.2f})"
    metrics.unlink()
    (line,) = lines_of_runs({"new": read_record(Workdir("quick-seed0"))})
    assert (line.cells["epochs"], line.cells["validation"]) == ("0 of 6", "")


def test_run_of_which_every_model_diverged_is_said_to_have(folder):
    lost = [{"seed": 0, "excluded": "the loss became nan"}]
    path = folder / "quick-seed0" / "summary.json"
    path.write_text(json.dumps({"members": lost, "device": "CPU"}))
    lines = (folder / "quick-seed0" / METRICS).read_text().splitlines(keepends=True)
    for written in ([], lines[:2]):
        (folder / "quick-seed0" / METRICS).write_text("".join(written))
        (line,) = lines_of_runs({"run": read_record(Workdir("quick-seed0"))})
        assert (line.cells["validation"], line.cells["test"]) == ("diverged", "diverged")


def test_folders_of_one_name_are_told_apart_by_their_paths_and_names_are_escaped(folder):
    for parent in ("a", "<b>"):
        shutil.copytree("quick-seed0", folder / parent / "quick-seed0")
    assert run("a/quick-seed0", "<b>/quick-seed0", "--page=page.html").status == 0
    page = Page(Path("page.html").read_text("utf-8"))
    assert {"a/quick-seed0", "<b>/quick-seed0"} <= page.named.keys()
    assert "<b>" not in page.text


def test_folder_has_its_name_from_within_too_and_no_name_is_mathematics(folder, monkeypatch):
    for name in ("$_$", "_mine"):
        shutil.copytree("quick-seed0", folder / name)
    _, page = compare("$_$", "_mine")
    assert "_mine" in page.picture
    monkeypatch.chdir("quick-seed0")
    _, page = compare(".")
    assert "quick-seed0" in page.named


def test_names_are_printed_whole(folder):
    names = [f"{'a-long-name-' * 6}{end}" for end in ("first", "second")]
    for name in names:
        shutil.copytree("quick-seed0", folder / name)
    lines = run(*names).out.splitlines()
    column = "".join(line.split("│")[1].strip() for line in lines if "│" in line)
    assert all(name in column for name in names)


NAMES = [f"{seed}-{'x' * 29}" for seed in range(2)]
RANGES = {
    "training": "40.27 (39.90-40.55)",
    "validation": "119.25 (118.03-120.33)",
    "test": "114.33 (113.63-115.36)",
    "words/s": "12,345",
}


def printed(width):
    """What a terminal of that width shows of two lines, and its table's titles."""
    file, cells = io.StringIO(), RANGES | {"epochs": "13 of 13"}
    lines = [Line(cells=cells | {"run": name}) for name in NAMES]
    print_comparison(Console(file=file, width=width), lines)
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text, next(line for line in text.splitlines() if "run" in line).replace("┃", "").split()


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (150, []),
        (110, []),
        (95, ["words/s"]),
        (80, ["words/s", "training"]),
        (60, ["words/s", "training", "epochs"]),
        (40, ["words/s", "training", "epochs", "validation"]),
    ],
)
def test_narrow_terminals_show_fewer_columns_and_never_half_a_figure(width, left_out):
    text, titles = printed(width)
    kept = [x for x in ("run", "epochs", *RANGES) if x not in left_out]
    assert titles == kept
    for title in RANGES.keys() & set(kept):
        mean, *spread = RANGES[title].split()
        assert all(text.count(part) == 2 for part in (mean, *spread))
    assert (RANGES["test"] in text) == (width == 150)


def test_names_of_any_length_leave_the_curves_their_room(folder):
    name = "m" * 250
    shutil.copytree("quick-seed0", folder / name)
    _, page = compare(name)  # matplotlib would warn
    assert "m" * 48 in page.picture
    assert "m" * 49 not in page.picture


def test_folder_of_runs_stands_for_those_in_it_but_not_for_the_records_of_them(folder):
    for path in ("reproduce", "reproduce/results", "mine"):
        shutil.copytree(RUNS[0], folder / path / RUNS[0])
    shutil.copytree(RUNS[1], folder / "reproduce" / RUNS[1])
    (folder / "reproduce" / "damaged").mkdir()
    (folder / "reproduce" / "damaged" / "config.json").write_text("{}")
    shutil.copy(RESULTS / "ablation" / "results.json", folder / "mine" / "results.json")
    out, page = compare("reproduce", "mine")
    assert {f"reproduce/{name}" for name in RUNS} <= page.named.keys()
    assert "skipped reproduce/damaged: holds a damaged record" in out
    assert not [name for name in page.named if "results" in name or name.startswith("mine/")]
    assert "mine, gru, L2" in page.named


def test_what_is_no_run_is_refused_in_a_line(folder):
    assert_refused(run("absent"), "absent: holds no run; name the --workdir of one")
    several = run("absent", "missing", "lacking")
    assert_refused(several, "absent: holds no run")
    for name in ("missing", "lacking"):
        assert f"skipped {name}: holds no run; name the --workdir of one" in several.out
    assert_refused(run(), "error: give RUN... besides the flags; see --help")
    (folder / "quick-seed0" / "config.json").write_text("{}")
    assert_refused(run("quick-seed0"), "quick-seed0: holds a damaged record", "again")
    damages = [("summary.json", '{"x": 1}'), ("summary.json", "[1]")]
    summary, metrics = (
        (RESULTS / RUNS[0] / name).read_text() for name in ("summary.json", METRICS)
    )
    damages += [
        ("summary.json", re.sub('"device": "[^"]*"', '"device": 3', summary)),
        (METRICS, re.sub('"words_per_second": [^,}]*', '"words_per_second": null', metrics)),
    ]
    for name, content in (*damages, (METRICS, "{}\n"), (METRICS, "")):
        shutil.rmtree(folder / "quick-seed0")
        shutil.copytree(RESULTS / "quick-seed0", "quick-seed0")
        (folder / "quick-seed0" / name).write_text(content)
        assert_refused(run("quick-seed0"), "quick-seed0: holds a damaged record", "again")
    assert not (folder / "report.html").exists()


def test_page_replaces_no_other_file(folder):
    (folder / "report.html").write_text("mine")
    for page in ("report.html", f"{RUNS[1]}/{METRICS}"):
        before = content_of(folder)
        assert_refused(run(RUNS[1], f"--page={page}"), f"--page={page}: exists and is not a page")
        assert content_of(folder) == before


def test_page_replaces_no_pipe_and_no_device(folder):
    os.mkfifo("pipe")
    assert_refused(run(RUNS[1], "--page=pipe"), "--page=pipe: is a device or a pipe; name a file")
    assert (folder / "pipe").is_fifo()


def test_page_is_written_through_a_link(folder):
    (folder / "www").mkdir()
    Path("report.html").symlink_to("www/page.html")
    assert run(RUNS[1]).status == 0
    assert Path("report.html").is_symlink()
    assert (folder / "www" / "page.html").read_text("utf-8").startswith("<!DOCTYPE")
    for name, target in (("lost.html", "absent/page.html"), ("loop.html", "loop.html")):
        Path(name).symlink_to(target)
        assert_refused(run(RUNS[1], f"--page={name}"), f"--page={name}: nothing can be written in")


def test_standard_output_is_no_file_though_it_leads_to_one(monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(os, "access", lambda *_: True)
    with pytest.raises(InputError, match="--page=/dev/stdout: is a device or a pipe"):
        refuse_to_replace("page", Path("/dev/stdout"), "a page", lambda _: True)


def test_link_that_leads_to_itself_holds_no_run(folder):
    Path("loop").symlink_to("loop")
    assert_refused(run("loop"), "loop: holds no run; name the --workdir of one")


def test_settings_of_an_ablation_are_those_its_models_were_trained_with():
    results = json.loads((RESULTS / "ablation" / "results.json").read_text())
    settings = {line.name: line.settings for line in lines_of_ablation("a", results)}
    for cell, rate in results["learning_rates"].items():
        assert settings[f"a, {cell}, L2"]["learning_rate"] == rate
    assert settings["a, lstm, variational dropout"]["mask_each"] == "window"
    assert settings["a, lstm, ordinary dropout"]["mask_each"] == "step"
    assert {line["seed"] for line in settings.values()} == {"0, 1, 2"}
    assert {line["kernel"] for line in settings.values()} == {"custom_vjp"}  # named xla in the file


def test_runs_of_one_model_at_two_stages_are_lines_of_two_names(folder):
    for seed in range(4):
        shutil.copytree("quick-seed0", f"s{seed}")
        for name in ("config.json", "summary.json"):
            edit(folder / f"s{seed}" / name, seed=seed)
    for seed in (2, 3):
        (folder / f"s{seed}" / "summary.json").unlink()
    records = {f"s{seed}": read_record(Workdir(f"s{seed}")) for seed in range(4)}
    assert len({line.name for line in lines_of_settings(records)}) == 2


def test_runs_of_other_lengths_and_ensembles_are_lines_of_their_own():
    def trained(seed, epochs, **more):
        line = {"train_perplexity": 9.0, "valid_perplexity_estimate": 9.0, "seconds": 7200.0}
        line |= {"words_per_second": 1500.0, "valid_perplexity_estimates": [9.0]}
        history = [line | {"train_perplexities": [9.0]}] * epochs
        return Record(config=override(QUICK, seed=seed), summary={}, history=history, more=more)

    runs = {"a": trained(0, 2), "b": trained(1, 3), "c": trained(2, 2, members=1)}
    lines = lines_of_settings(runs)
    assert [line.name for line in lines] == ["a", "b", "c"]
    assert [line.cells["epochs"] for line in lines] == ["2 of 6", "3 of 6", "2 of 6"]
    assert (lines[0].cells["words/s"], lines[0].cells["hours"]) == ("1,500", "2.00")


def test_ensembles_that_share_a_member_are_lines_of_their_own():
    def trained(first, is_finished):
        seeds = (first, first + 1)
        members = [{"seed": n, "valid_perplexity": 9.0, "test_perplexity": 8.0} for n in seeds]
        summary = {"members": members, "device": "CPU"} if is_finished else {}
        config = override(QUICK, seed=first)
        return Record(config=config, summary=summary, history=[], more={"members": 2})

    for is_finished in (True, False):
        ensembles = {"a": trained(0, is_finished), "b": trained(1, is_finished)}
        assert [x.cells["seed"] for x in lines_of_settings(ensembles)] == ["0, 1", "1, 2"]


def test_damaged_number_of_members_is_refused(folder):
    edit(folder / "quick-seed0" / "config.json", members="3")
    (folder / "quick-seed0" / "summary.json").unlink()
    assert_refused(run("quick-seed0"), "quick-seed0: holds a damaged record", "again")


def test_file_of_the_users_beside_a_run_does_not_hide_it(folder):
    (folder / "quick-seed0" / "results.json").write_text('{"mine": 1}')
    out, _ = compare("quick-seed0")
    assert FIGURE in out


def test_damaged_averages_are_refused(folder):
    edit(folder / "quick-seed0" / "summary.json", mixtures=[{"members": 1}])
    assert_refused(run("quick-seed0"), "quick-seed0: holds a damaged record", "again")


def test_folder_whose_name_is_no_text_is_compared(folder):
    (folder / "quick-seed0").rename(folder / "caf\udce9")
    _, page = compare("caf\udce9")
    assert "caf?" in page.text


def test_what_is_no_run_is_skipped_with_a_note_and_page_needs_no_matplotlib(folder, monkeypatch):
    (folder / "notes").mkdir()
    save_folder(folder / "exported", make())
    monkeypatch.setattr(report, "can_draw", lambda: False)
    monkeypatch.setattr(comparison_page, "can_draw", lambda: False)
    out, page = compare("quick-seed0", "notes", "absent.txt", "exported")
    assert "skipped exported: holds an exported model, not a run" in out
    for name in ("notes", "absent.txt"):
        assert f"skipped {name}: holds no run" in out
    assert "no curves without matplotlib" in out
    assert FIGURE in out
    assert "<svg" not in page.text
    assert "dblclick" not in page.text


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_not_be_read_is_skipped_with_a_note(folder, monkeypatch, what):
    def refusing(do):
        def refused(path, *how, **more):
            if "locked" in str(path):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return do(path, *how, **more)

        return refused

    shutil.copytree("quick-seed0", folder / "locked")
    monkeypatch.setattr(Path, "read_text", refusing(Path.read_text))
    if what == "folder":
        monkeypatch.setattr(os, "stat", refusing(os.stat))
    out, _ = compare("quick-seed0", "locked")
    assert "skipped locked: holds no run that this user may read; name" in out
    assert FIGURE in out


def test_seeds_of_one_setting_are_a_line_with_mean_and_range(folder):
    names = [f"small-seed{seed}" for seed in range(10)]
    _, page = compare(*(str(RESULTS / name) for name in names))
    tests = [summary_of(RESULTS / name)["test_perplexity"] for name in names]
    expected = f"{sum(tests) / 10:.2f} ({min(tests):.2f}-{max(tests):.2f})"
    assert page.named["small, 10 runs"][6] == expected
    assert page.named["small-seed7"][6] == f"{tests[7]:.2f}"  # on its own, below


def test_averages_and_ablations_are_compared_too(folder):
    mixtures, ablation = RESULTS / "small-mixtures.json", RESULTS / "ablation"
    _, page = compare(str(mixtures), str(ablation), str(RESULTS / "table1.md"))
    best = json.loads(mixtures.read_text())["mixtures"][-1]
    averaged = page.named["small-mixtures.json, 10 averaged"]
    assert averaged[6] == f"{best['test_perplexity']:.2f}"
    assert page.named["ablation, gru, L2"][2:4] == ["0, 1, 2", "10 of 10"]
    assert page.named["ablation, gru, L2"][6] == "67.85 (67.76-67.94)"
    assert "dblclick" in page.text  # the zoom


def test_sweep_has_a_line_a_setting_and_says_which_diverged(folder):
    path = folder / "sweep"
    shutil.copytree("quick-seed0", path)
    config = json.loads((path / "config.json").read_text())
    edit(path / "config.json", vary="dropout=0_0.5", members=2)
    good = [
        {"seed": s, "excluded": None, "valid_perplexity": 50 + s, "test_perplexity": 48 + s}
        for s in (0, 1)
    ]
    bad = [{"seed": 0, "excluded": "not finite"}, {"seed": 1, "excluded": None}]
    settings = [
        {"setting": {"dropout": rate}, "members": members}
        for rate, members in ((0.5, bad), (0.0, good))
    ]
    summary = {"config": config, "settings": settings, "device": "CPU"}
    (path / "summary.json").write_text(json.dumps(summary))
    lines = [{"valid_perplexity_estimates": [None, 7, 9, 8], "train_perplexities": [None, 3, 5, 4]}]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _, page = compare("sweep")
    finite, lost = (page.named[f"sweep, dropout {rate}"][4:7] for rate in ("0", "0.5"))
    assert finite == ["4.50 (4.00-5.00)", "50.50 (50.00-51.00)", "48.50 (48.00-49.00)"]
    assert lost == ["", "diverged", "diverged"]
    diverged, line = lines_of_sweep("sweep", summary, lines)
    assert (diverged.validation, diverged.training) == ([], [])
    assert (line.validation, line.training) == ([[9], [8]], [[5], [4]])
    assert line.graded
    (path / "summary.json").unlink()
    assert_refused(run("sweep"), "sweep: holds an unfinished sweep; give its command again")


def test_curves_of_many_runs_are_apart_in_colour_and_those_of_a_sweep_a_gradient():
    for graded in (False, True):
        cells = [{"run": f"run {number}"} for number in range(10)]
        lines = [Line(cells=cell, validation=[[9.0, 8.0]], graded=graded) for cell in cells]
        drawn = comparison_page.comparison_figure(lines).axes[0].get_lines()
        colors = [style["color"] for style in line_styles(10, graded=graded)]
        assert [line.get_color() for line in drawn] == colors


def test_unfinished_ensemble_is_compared_and_unfinished_sweep_skipped_with_a_note(folder):
    invoke.write_texts(folder)
    invoke.run(*invoke.MEMBERS, "--epochs=1", "--workdir=ensemble", program=ensemble)
    flags = ("--vary=dropout=0,0.5", "--epochs=1", "--workdir=sweep")
    invoke.run(*invoke.SWEPT, *flags, program=sweep)
    for name in ("ensemble", "sweep"):
        (folder / name / "summary.json").unlink()  # they would write it next
    out, page = compare("ensemble", "sweep")
    assert "skipped sweep: holds an unfinished sweep; give its command again" in out
    (metrics,) = invoke.metrics(folder / "ensemble")
    estimate = statistics.mean(metrics["valid_perplexity_estimates"])
    row = page.named["ensemble"]
    assert row[3:7] == ["1 of 1", row[4], f"({estimate:.2f})", ""]
    assert "sweep" not in page.named
