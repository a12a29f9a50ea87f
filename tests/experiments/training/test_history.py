"""What an epoch leaves on disk costs the same however many came before."""

import json

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
    assert [path.stat().st_ino for path in workdir.histories] == before  # not written anew
    assert sizes[-1] < sizes[0] + 20
    kept = json.loads(json.dumps(journal.record()))["history"]
    assert read_history(workdir, kept) == journal.history
