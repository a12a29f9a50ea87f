"""The paper's table: what is trained, recorded, skipped, averaged and shown."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import invoke
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke import assert_refused, content
from rich.console import Console

from experiments import reproduce
from experiments.cli import opened_runs
from experiments.reports import records
from experiments.reports.statistics import format_mean
from experiments.table1 import averages, jobs
from experiments.table1 import page as table1
from experiments.table1.after_the_paper import after_the_paper
from experiments.training.curves import Curves
from experiments.training.journal import Journal
from experiments.training.run_folder import Workdir
from zaremba_jax.config import override, settings
from zaremba_jax.data.encoding import read_corpus
from zaremba_jax.ensemble import mixture_nll
from zaremba_jax.evaluate import perplexity
from zaremba_jax.interop.model_file import load_model
from zaremba_jax.presets import AWD, MEDIUM, PAPER_PERPLEXITIES, PRESETS, SMALL

TINY = override(SMALL, **invoke.SETTINGS)
FLAGS = (
    "--rows=small",
    "--members=2",
    "--sizes=1,2",
    "--chunk=17",
    "--workdir=runs",
    "--results=results",
)


@pytest.fixture
def folder(folder, monkeypatch):
    """The working directory, in which `small` is tiny and the Penn Treebank is another text."""
    monkeypatch.setitem(PRESETS, "small", TINY)
    texts = [folder / f"{split}.txt" for split in ("train", "valid", "test")]
    monkeypatch.setattr(reproduce, "load_corpus", lambda config: read_corpus("PTB", *texts))
    return folder


def run(*flags):
    return invoke.run(*flags, program=reproduce)


def row(folder, averaged):
    """The cells of the table's row for `small` with that many models averaged."""
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (folder / "results" / "table1.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    (cells,) = (line for line in lines if line[:2] == ["small", str(averaged)])
    return cells


def ends_of(record):
    """Seconds of a run at the end of each epoch."""
    return [line["seconds"] for line in record.history]


def test_table_is_trained_recorded_averaged_and_not_trained_again(folder):
    first = run(*FLAGS)
    assert first.status == 0, first.err
    names = ["config.json", "metrics.jsonl", "summary.json"]
    for seed in (0, 1):
        record = folder / "results" / f"small-seed{seed}"
        assert sorted(path.name for path in record.iterdir()) == names
        model = load_model(folder / "runs" / f"small-seed{seed}" / "model.safetensors")
        assert model.config == override(TINY, seed=seed)
    singles = [
        json.loads((folder / "results" / f"small-seed{seed}" / "summary.json").read_text())
        for seed in (0, 1)
    ]
    tests = [single["test_perplexity"] for single in singles]
    assert row(folder, 1)[4] == f"{np.mean(tests):.1f} ± {np.std(tests, ddof=1):.1f}"
    assert row(folder, 1)[3:7:2] == ["120.7", "114.5"]
    arrays = [np.load(folder / "runs" / f"small-seed{seed}" / "nll.npz") for seed in (0, 1)]
    for single, nll in zip(singles, arrays, strict=True):
        for split in ("valid", "test"):
            assert perplexity(nll[split][0]) == pytest.approx(single[f"{split}_perplexity"])
    mixed = perplexity(mixture_nll(np.concatenate([a["test"] for a in arrays])))
    assert row(folder, 2)[4] == f"{mixed:.1f}"
    assert mixed < np.mean(tests)
    runs = records.read_records(folder / "results")
    seconds = sum(len(ends) * np.median(np.diff(ends, prepend=0)) for ends in map(ends_of, runs))
    assert row(folder, 2)[7:] == ["2", f"{seconds / 60:.2g} min, {singles[0]['device']}"]
    page = (folder / "results" / "table1.md").read_text(encoding="utf-8")
    assert "| large | 38 | not run | 71.9 | not run | 68.7 |" in page
    assert (folder / "results" / "table1.png").stat().st_size > 0

    before = content(folder / "results")
    Path("mine").mkdir()
    for name in ("table1.png", "table1.md"):
        shutil.copy(folder / "results" / "table1.md", "mine")
        (Path("mine") / name).write_text("mine")
        refused = run(*FLAGS, "--results=mine")
        assert_refused(
            refused, f"--results=mine/{name}: exists and is not", "of this program; name"
        )
    rerun = run(*FLAGS)
    assert rerun.status == 0
    assert "small-seed" not in rerun.out
    assert "small: nothing to train, since results has the records; to start" in rerun.out
    assert content(folder / "results").keys() == before.keys()
    assert (folder / "results" / "table1.md").read_text(encoding="utf-8") == page

    more = run(*FLAGS, "--members=3", "--sizes=3")  # a third model, for more sets of two
    assert "small-seed2:" in more.out
    assert row(folder, 2)[7] == "3, 3 sets"
    assert row(folder, 3)[3:6:2] == ["", ""]

    shutil.rmtree(folder / "runs" / "small-seed1")  # as for a record that came from elsewhere
    last = run(*FLAGS, "--members=4")
    assert "small: no average will include seed 1: recorded, but no nats per token" in last.out
    assert row(folder, 2)[7] == "3, 3 sets"


def test_job_of_one_model_that_several_hosts_began_goes_on_on_one(folder):
    begun = Workdir(folder / "runs" / "small-seed0")
    begun.path.mkdir(parents=True)
    begun.write_config(TINY, members=1)
    outcome = run(*FLAGS, "--members=1", "--sizes=1")
    assert outcome.status == 0, outcome.err
    record = json.loads((folder / "results" / "small-seed0" / "summary.json").read_text())
    assert [member["seed"] for member in record["members"]] == [0]


def test_seed_that_diverges_is_recorded_without_figures_and_the_others_go_on(folder):
    flags = (*FLAGS, "--learning_rate=1e9", "--clip_norm=1e9")
    first, rerun = run(*flags), run(*flags)
    assert (first.status, rerun.status) == (0, 0), first.err
    assert first.out.count("left out: the loss became") == 2
    assert "left out" not in rerun.out
    runs = records.read_records(folder / "results")
    assert [(record.seeds, record.perplexities) for record in runs] == [({0}, {}), ({1}, {})]
    page = (folder / "results" / "table1.md").read_text(encoding="utf-8")
    assert "1000000000" not in page


def test_members_that_all_diverge_are_all_recorded(folder):
    flags = (*FLAGS, "--members_at_once=2", "--learning_rate=1e9", "--clip_norm=1e9")
    first, rerun = run(*flags), run(*flags)
    assert (first.status, rerun.status) == (0, 0), first.err
    (record,) = records.read_records(folder / "results")
    assert (record.seeds, record.perplexities) == ({0, 1}, {})
    assert all("the loss became" in member["excluded"] for member in record.summary["members"])
    assert record.summary.keys() >= {"date", "command", "git_commit"}
    assert "seed" not in rerun.out


def test_run_that_ends_out_of_patience_is_trained_alone_however_many_fit(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # nothing is drawn
    monkeypatch.setattr(opened_runs, "default_at_once", lambda *_: 2)
    outcome = run(*FLAGS, "--patience=1")
    assert outcome.status == 0, outcome.err
    names = {path.name for path in (folder / "runs").iterdir()}
    assert names == {f"small-patience=1-seed{seed}" for seed in (0, 1)}


def test_patience_on_several_hosts_is_refused_before_a_text_is_read(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(reproduce, "load_corpus", None)  # is not reached
    refused = run(*FLAGS, "--patience=1")
    assert_refused(refused, "--patience=1: models that several hosts train end together; leave")
    assert not (folder / "results").exists()


def test_record_of_members_that_all_diverged_tells_on_how_many_devices(tmp_path):
    trained: Any = SimpleNamespace(devices=4, journal=Journal([0.0], provenance={"date": "today"}))
    workdir = Workdir(tmp_path / "run")
    workdir.hold()
    workdir.write_config(SMALL)
    workdir.metrics.touch()
    jobs.record_diverged(trained, {3: "the loss became nan"}, workdir, tmp_path / "results")
    summary = json.loads((tmp_path / "results" / "run" / "summary.json").read_text())
    assert summary["members"] == [{"seed": 3, "excluded": "the loss became nan"}]
    assert (summary["device"][:3], summary["date"]) == ("4 ×", "today")


@pytest.mark.slow
def test_members_trained_together_are_recorded_as_those_trained_alone(folder):
    assert run(*FLAGS, "--members_at_once=2", "--dropout=0.5").status == 0
    assert run(*FLAGS, "--dropout=0.5", "--results=alone", "--workdir=others").status == 0
    (members,) = folder.glob("runs/*/members")
    assert sorted(path.name for path in members.iterdir()) == [
        "seed-0.safetensors",
        "seed-1.safetensors",
    ]
    together, *rest = records.read_records(folder / "results")
    assert not rest
    alone = records.read_records(folder / "alone")
    for seed, record in enumerate(alone):
        assert record.model == together.model
        assert together.perplexities[seed] == pytest.approx(record.perplexities[seed], rel=1e-5)
        np.testing.assert_allclose(together.curves[seed], record.curves[0], rtol=1e-5)
    page = (folder / "results" / "table1.md").read_text(encoding="utf-8")
    assert "| small | 1 | not run |" in page
    mean = format_mean([p[0] for p in together.perplexities.values()])
    assert f"| small-dropout=0.5 | {mean}" in page


def test_damaged_files_and_foreign_flags_are_refused_in_a_line(folder):
    record = folder / "results" / "small-seed0"
    record.mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        (record / name).write_text("{}")
    assert_refused(run(*FLAGS), "results/small-seed0: holds a damaged record", "writes it anew")
    (record / "summary.json").unlink()
    (folder / "results" / "small-mixtures.json").write_text("{")
    corpus = reproduce.load_corpus(TINY)
    (folder / "runs" / "small-seed7").mkdir(parents=True)
    path = folder / "whole.npz"
    np.savez(path, seeds=[7], valid=np.ones((1, 9)), test=np.ones((1, 9)))
    for damaged in (b"PK", b"", path.read_bytes()[:300]):
        (folder / "runs" / "small-seed7" / "nll.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"small-seed7/nll.npz: is damaged .*; remove it"):
            averages.mix(TINY, corpus, folder / "runs", [1], [])
    with pytest.raises(ValueError, match=r"small-mixtures.json: is damaged"):
        averages.read_mixtures(folder / "results", TINY)


def test_sweep_among_the_records_is_called_so(tmp_path):
    workdir = Workdir(tmp_path / "swept")
    workdir.hold()
    workdir.write_config(SMALL, vary="dropout=0.0_0.5", members=1)
    workdir.summary.write_text('{"settings": [], "best": null}')
    with pytest.raises(ValueError, match="swept: holds a sweep, not a run; leave it out"):
        records.read_records(tmp_path)


BAD_FLAGS = [
    (["--rows=tiny"], ["--rows=tiny: give some of small,medium,large"]),
    (["--sizes=1,two"], ["--sizes=two: there are 10 members; give numbers from 1 up"]),
    (["--rows=large", "--members=2", "--sizes=5"], ["--sizes=5: there are 2 members"]),
    (["--members=0"], ["members=0", "see --help"]),
    (["--config=small"], ["--config=small: name models of the table with --rows"]),
    (["--corpus=toy"], ["--corpus, --train_file: the table is the Penn Treebank's"]),
    (["--valid_file=v.txt"], ["--corpus, --train_file: the table is the Penn Treebank's"]),
    (["--valid_fraction=0.1"], ["--corpus, --train_file: the table is the Penn Treebank's"]),
    (["--min_count=2"], ["--vocab_size, --min_count, --vocabulary: perplexities"]),
    (["--unit=char"], ["--unit=char: ptb is read by the word; leave it out"]),
]


@pytest.mark.parametrize(("flags", "telling"), BAD_FLAGS, ids=[" ".join(f) for f, _ in BAD_FLAGS])
def test_bad_flag_is_refused_and_nothing_is_written(folder, flags, telling):
    before = content(folder)
    assert_refused(run(*flags), *telling)
    assert content(folder) == before


def held(*seeds, config=SMALL, valid=2.0, test=1.0):
    """Records of runs of one model."""
    figures = {"valid_perplexity": valid, "test_perplexity": test, "device": "one", "seconds": 1}
    return [
        records.Record(config=config, summary={"seed": seed, **figures}, history=[{"seconds": 1}])
        for seed in seeds
    ]


@given(
    first=st.integers(0, 3),
    seeds=st.integers(1, 12),
    done=st.sets(st.integers(0, 15)),
    at_most=st.integers(1, 5),
)
def test_jobs_train_every_seed_that_is_missing_once_and_no_more_together_than_asked(
    first, seeds, done, at_most
):
    config, nowhere = override(SMALL, seed=first), Path("nowhere")
    remaining = jobs.remaining_jobs(config, seeds, held(*done), nowhere, at_most)
    trained = [job.config.seed + offset for job in remaining for offset in range(job.count)]
    assert trained == sorted(set(range(first, first + seeds)) - done)
    assert all(job.count <= at_most for job in remaining)
    assert len({job.name for job in remaining}) == len(remaining)


def test_what_was_begun_goes_on_first_and_together_however_many_are_trained_at_once(tmp_path):
    for name in ("small-seeds2-4", "small-seed7", "small-seeds8-12", "small-layers=1-seed0"):
        (tmp_path / name).mkdir()
    for at_most, rest in ((1, ["small-seed0", "small-seed1", "small-seed5"]), (3, None)):
        remaining = jobs.remaining_jobs(SMALL, 8, held(6), tmp_path, at_most)
        names = [job.name for job in remaining]
        assert names[:2] == ["small-seed7", "small-seeds2-4"]
        assert names[2:] == (rest or ["small-seeds0-1", "small-seed5"])


def test_folders_whose_names_no_job_has_are_none(tmp_path):
    for name in ("small-seeds8-3", f"small-seed{2**32}"):
        (tmp_path / name).mkdir()
    assert jobs.started_jobs(SMALL, tmp_path) == []


def test_records_are_of_the_same_model_whatever_computes_it_but_not_with_other_settings():
    (record,) = held(0, config=override(SMALL, kernel="scan", softmax_tokens=7))
    assert record.model == SMALL
    assert jobs.recorded_seeds(override(SMALL, seed=9), [record]) == {0}
    for changes in ({"precision": "bfloat16"}, {"constant_epochs": 5}):
        assert not jobs.recorded_seeds(override(SMALL, **changes), [record])
    changed = override(SMALL, seed=3, constant_epochs=5, kernel="scan")
    assert jobs.Job(changed, 1).name == "small-constant_epochs=5-seed3"
    assert jobs.Job(override(MEDIUM, seed=2), 4).name == "medium-seeds2-5"


def test_member_that_diverged_is_in_no_figure_and_no_curve():
    members = [
        {"seed": 4, "excluded": None, "valid_perplexity": 2.0, "test_perplexity": 3.0},
        {"seed": 5, "excluded": "the loss became nan"},
    ]
    history = [{"valid_perplexity_estimates": [9.0, None]}]
    record = records.Record(config=SMALL, summary={"members": members}, history=history)
    assert record.perplexities == {4: (2.0, 3.0)}
    assert record.curves == [[9.0]]
    without_metrics = dataclasses.replace(record, history=[])
    without_metrics.summary["device"] = "CPU"
    with pytest.raises(ValueError, match="its metrics lack 13 of 13 epochs"):
        without_metrics.check()
    assert jobs.recorded_seeds(SMALL, [record]) == {4, 5}  # it would diverge again


def test_mixtures_leave_those_of_models_that_they_lack(tmp_path):
    def mixtures(*seeds):
        return {"seeds": list(seeds), "mixtures": []}

    kept = [0, 1, 2]
    for seeds in ((0, 1, 2), (0, 1), (3, 4, 5, 6)):
        written = averages.write_mixtures(tmp_path, SMALL, mixtures(*seeds)) == []
        assert written == (list(seeds) == kept)
        assert averages.read_mixtures(tmp_path, SMALL) == mixtures(*kept)
    assert averages.write_mixtures(tmp_path, SMALL, None) == []
    assert averages.write_mixtures(tmp_path, SMALL, mixtures(0, 1, 2, 3)) == []
    assert averages.read_mixtures(tmp_path, SMALL) == mixtures(0, 1, 2, 3)


def test_model_of_many_changes_has_names_that_a_file_system_takes(tmp_path):
    names = [x for x, s in settings().items() if s.section == "regularizers" and s.kind is float]
    config = override(SMALL, **dict.fromkeys(names, 0.123456789))
    assert len(records.model_name(config)) > 255
    job, mixtures = jobs.Job(config, 2), {"seeds": [0, 1], "mixtures": []}
    (tmp_path / job.name).mkdir()
    assert jobs.started_jobs(config, tmp_path) == [job]
    assert averages.read_nll(config, tmp_path, []) == {}
    averages.write_mixtures(tmp_path, config, mixtures)
    assert averages.read_mixtures(tmp_path, config) == mixtures


def test_average_of_recorded_models_stays_beside_others_of_the_same_seeds(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # nothing is drawn
    assert run(*FLAGS).status == 0
    path = folder / "results" / "small-mixtures.json"
    held = json.loads(path.read_text())
    held["mixtures"][0]["test_perplexity"] = 1.0
    path.write_text(json.dumps(held))
    for seed in (0, 1):  # as if recorded elsewhere
        summary = folder / "results" / f"small-seed{seed}" / "summary.json"
        record = json.loads(summary.read_text())
        record["test_perplexity"] *= 1.01
        summary.write_text(json.dumps(record))
    assert run(*FLAGS).status == 0
    assert json.loads(path.read_text()) == held


def test_ensemble_of_awd_has_a_row_without_a_size():
    runs = [
        dataclasses.replace(r, summary={n: x for n, x in r.summary.items() if n != "parameters"})
        for r in held(0, config=AWD, test=60.0)
    ]
    assert [row[1] for row in after_the_paper(runs) if row[-1] == "here"] == [""]


def test_size_of_awd_is_told_by_any_of_its_records():
    (single,), (ensemble,) = held(0, config=AWD), held(1, config=AWD)
    single.summary["parameters"] = 24_000_000
    for runs in ([single, ensemble], [ensemble, single]):
        assert [row[1] for row in after_the_paper(runs) if row[-1] == "here, 2 seeds"] == ["24.0 M"]


def test_boards_show_the_final_perplexities(folder, monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(Curves, "results", lambda self, step, summary: shown.append(summary))
    assert run(*FLAGS, "--members=1", "--sizes=1").status == 0
    record = json.loads((folder / "results" / "small-seed0" / "summary.json").read_text())
    assert [figures["test_perplexity"] for figures in shown] == [record["test_perplexity"]]


def test_page_is_that_of_the_records_beside_it(tmp_path):
    results = Path(reproduce.__file__).parent / "results"
    shutil.copytree(results, tmp_path / "results")
    (tmp_path / "results" / "table1.md").unlink()
    reproduce.write_table(tmp_path / "results", Console(quiet=True))
    assert (tmp_path / "results" / "table1.md").read_text(encoding="utf-8") == (
        results / "table1.md"
    ).read_text(encoding="utf-8")


def test_every_model_of_the_paper_has_a_line_for_each_number_averaged():
    page = table1.markdown_page(table1.table_lines([], {}), table1.other_choices([], {}))
    for name, paper in PAPER_PERPLEXITIES.items():
        for members, (valid, test) in paper.items():
            assert f"| {name} | {members} | not run | {valid} | not run | {test} |" in page


def test_other_choices_are_compared_to_all_seeds_of_the_preset():
    changed = override(SMALL, constant_epochs=5)
    runs = [record for seed in (0, 1, 2) for record in held(seed, valid=120.0 + seed, test=110.0)]
    runs += held(1, config=changed, valid=123.0, test=109.0)
    runs += held(7, config=changed, valid=126.0, test=110.5)
    mixture = {"seeds": [1, 7], "mixtures": [{}, {"test_perplexity": 99.96}]}
    others = table1.other_choices(runs, {"small-constant_epochs=5": mixture})
    # Seeds vary by 1: sqrt(1/2 + 1/3) = 0.91.
    cells = ["124.5 ± 2.1", "+3.5 ± 0.9", "109.8 ± 1.1", "-0.2 ± 0.0", "2", "100.0"]
    assert others == [["small-constant_epochs=5", *cells]]
    assert f"| small-constant_epochs=5 | {' | '.join(cells)} |" in table1.markdown_page(
        [], others, []
    )
    mixture["seeds"].remove(7)  # an average of one model is not of both
    assert table1.other_choices(runs, {"small-constant_epochs=5": mixture})[0][-1] == ""


def test_other_choices_are_compared_to_the_preset_of_their_precision():
    rough = override(SMALL, precision="bfloat16")
    runs = held(0, test=110.0) + held(0, config=rough, test=112.0)
    runs += held(0, config=override(rough, second_bias=True), test=109.0)
    lower, both = table1.other_choices(runs, {})
    assert (lower[0], lower[4]) == ("small-precision=bfloat16", "+2.0")
    assert (both[0], both[4]) == ("small-second_bias=True-precision=bfloat16", "-3.0")
    lost = {"members": [{"seed": 1, "excluded": "the loss became nan"}]}
    diverged = records.Record(config=override(SMALL, dropout=0.5), summary=lost, history=[])
    assert len(table1.other_choices([*runs, diverged], {})) == 2


def test_runs_of_awd_stand_among_what_was_published_after_the_paper_by_test_perplexity():
    smaller = override(AWD, hidden_size=650)
    size = {"parameters": 11_806_800}
    runs = [
        dataclasses.replace(run, name=f"awd-650-seed{seed}", summary=run.summary | size)
        for seed, test in enumerate((67.0, 69.0))
        for run in held(seed, config=smaller, valid=70.04, test=test)
    ]
    rows = after_the_paper(held(0, test=1.0) + runs)
    (here,) = (row for row in rows if row[-1].startswith("here"))
    assert here == ["awd-650", "11.8 M", "70.0 ± 0.0", "68.0 ± 1.4", "here, 2 seeds"]
    tests = [float(row[3].split()[0]) for row in rows]
    assert tests == sorted(tests, reverse=True)
    assert rows[rows.index(here) - 1][3] == "68.5"
    assert ["38 large, averaged", "2,508 M", "71.9", "68.7", "Zaremba et al. 2014"] in rows


def test_training_time_leaves_out_what_held_an_epoch_up():
    ends = [{"seconds": end} for end in (3600, 7200, 18000, 21600)]
    summary = held(0)[0].summary
    (line, *_) = table1.table_lines(
        [records.Record(config=SMALL, summary=summary, history=ends)], {}
    )
    assert line.time == "4.0 h, one"


def test_model_of_two_records_counts_once():
    runs = held(0, test=100.0) + held(0, config=override(SMALL, kernel="scan"), test=110.0)
    (line, *_) = table1.table_lines(runs, {})
    assert (line.test, line.models) == ("110.0", "1")


def test_what_is_asked_is_done_as_by_the_program_of_one_model(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as without it
    flags = ("--rows=small", "--members=2", "--workdir=r", "--hidden_size=6")
    outcome = run(*flags, "--chunk=17", "--kernel=auto", "--sizes=2")
    assert outcome.status == 0, outcome.err
    assert outcome.out.count("no table1.png without matplotlib") == 1
    assert "Other choices" in outcome.out
    assert json.loads((folder / "r/small-hidden_size=6-seed0/kernel.json").read_text())
    mixtures = json.loads((folder / "r/results/small-hidden_size=6-mixtures.json").read_text())
    assert [mixture["members"] for mixture in mixtures["mixtures"]] == [1, 2]
    printed = table1.other_choices(records.read_records(folder / "r/results"), {})
    assert all(figure.replace(" ± ", "±") in outcome.out for figure in printed[0][1:])
