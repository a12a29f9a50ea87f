"""The files that the scores of a text are written to."""

import json

from experiments.reports.score_files import write_records


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


def test_tabs_and_line_ends_do_not_break_a_table(tmp_path):
    write_records(tmp_path / "x.tsv", [{"text": "a\tb\n\\"}])
    assert (tmp_path / "x.tsv").read_text() == "text\na\\tb\\n\\\\\n"
