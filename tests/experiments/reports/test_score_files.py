"""The files that the scores of a text are written to."""

import csv
import json

from experiments.reports.score_files import is_of_scores, write_records


def test_both_forms_of_file_hold_the_same(tmp_path):
    tokens = [
        {"line": 1, "place": place, "token": token, "unknown": unknown, "log_probability": value}
        for place, (token, unknown, value) in enumerate(
            [("the", False, None), ("zebra", True, -3.25), ("<eos>", False, -1 / 3)], 1
        )
    ]
    for name in ("scores.jsonl", "new/scores.tsv"):
        write_records(tmp_path / name, tokens)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == tokens
    header, first, second, *rest = (tmp_path / "new/scores.tsv").read_text().splitlines()
    assert header.split("\t") == list(tokens[0])
    assert first == "1\t1\tthe\t0\t"
    assert float(second.split("\t")[-1]) == tokens[1]["log_probability"]
    assert len(rest) == len(tokens) - 2


def test_table_is_read_by_a_csv_reader_as_it_was_written(tmp_path):
    texts = ['"', "a\tb", "\n", "\r", "\\", 'a "b"', "'", " ", ""]
    write_records(tmp_path / "x.tsv", [{"text": text, "more": "x"} for text in texts])
    with (tmp_path / "x.tsv").open(newline="") as table:
        rows = list(csv.reader(table, delimiter="\t"))
    assert rows == [["text", "more"], *([text, "x"] for text in texts)]


def test_files_of_scores_are_known_again(tmp_path):
    for name in ("x.tsv", "x.jsonl"):
        write_records(tmp_path / name, [{"line": 1, "log_probability": -1.0, "text": "a"}])
        assert is_of_scores(tmp_path / name)
    (tmp_path / "x.tsv").write_text("line\ttext\n1\tlog_probability\n")
    assert not is_of_scores(tmp_path / "x.tsv")
