"""What an epoch leaves on disk costs the same however many came before."""

import json

from invoke import table

from experiments.training.history import EpochFiles, read_history
from experiments.training.journal import Journal
from experiments.training.run_folder import Workdir


def test_epoch_adds_a_line_to_each_file_and_nothing_to_a_checkpoint(tmp_path):
    workdir, journal = Workdir(tmp_path), Journal([0.0, 0.0])
    files = EpochFiles(workdir, journal.history)
    before = [path.stat().st_ino for path in workdir.histories]
    sizes = []
    for epoch in range(1, 300):
        estimates = {"valid_perplexity_estimate": 1 / epoch, "valid_perplexity_estimates": [1, 2.5]}
        journal.end_epoch({"epoch": epoch} | estimates, 0.5)
        files.add(journal.history[-1])
        sizes.append(len(json.dumps(journal.record())))
        if epoch == 1:  # when its columns are known
            before.append(workdir.metrics_table.stat().st_ino)
    paths = (*workdir.histories, workdir.metrics_table)
    assert [path.stat().st_ino for path in paths] == before  # not written anew
    assert sizes[-1] < sizes[0] + 20
    kept = json.loads(json.dumps(journal.record()))["history"]
    assert read_history(workdir, kept) == journal.history


def test_table_has_every_figure_of_the_lines_and_is_the_same_after_a_restart(tmp_path):
    rates = ({"learning_rate": 0.1}, {"learning_rate": 1 / 3}, {"learning_rates": [0.2, 0.1]})
    history = [
        {"epoch": epoch, **rate, "train_perplexities": [None, 7.25 / epoch]}
        for epoch, rate in enumerate(rates, 1)
    ]
    workdir, grown = Workdir(tmp_path), []
    files = EpochFiles(workdir, grown)
    for record in history:
        grown.append(record)
        files.add(record)
    first, last = (row for row in table(tmp_path) if row["epoch"] != "2")
    assert first == {
        **{"epoch": "1", "learning_rate": "0.1"},
        **{"train_perplexities_0": "", "train_perplexities_1": "7.25"},
        **{"learning_rates_0": "", "learning_rates_1": ""},
    }
    assert (last["learning_rate"], last["learning_rates_0"], last["learning_rates_1"]) == (
        *("", "0.2", "0.1"),
    )
    assert float(table(tmp_path)[1]["learning_rate"]) == 1 / 3
    before = workdir.metrics_table.read_bytes()
    EpochFiles(workdir, history)
    assert workdir.metrics_table.read_bytes() == before


def test_journal_is_read_as_it_was_recorded():
    journal = Journal([1.5, 2.5], provenance={"date": "today"})
    estimates = {"valid_perplexity_estimate": 9.0, "valid_perplexity_estimates": [8.0, 10.0]}
    journal.end_epoch(estimates, 0.5)
    journal.add_windows({0: 3.0, 1: 4.0}, 2.0)
    journal.exclude(1, "the loss became nan")
    kept = json.loads(json.dumps(journal.record()))
    assert Journal.read(kept, journal.history) == journal
