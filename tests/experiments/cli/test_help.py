import re

import pytest
from invoke import run, run_elsewhere

from experiments import ptb
from experiments.cli.help import about_unknown_flag
from zaremba_jax.config import settings, to_dict
from zaremba_jax.presets import MEDIUM


@pytest.fixture(scope="module")
def groups():
    """The flags of each group in the help of a preset, with the values that are shown."""
    told, *groups = re.split(r"\n\n(?=\S)", run("--lr=1", "--config=medium", "-h").out)[1:]
    assert told == "Trains the paper's language model."
    return {
        title: dict(re.findall(r"^  --(\w+)=(\S+)", members, re.MULTILINE))
        for title, _, members in (group.partition("\n") for group in groups)
    }


def test_help_shows_every_setting_with_the_value_of_the_preset(groups):
    shown = {name: value for members in groups.values() for name, value in members.items()}
    for name, value in to_dict(MEDIUM).items():
        if name != "name":
            kind = settings()[name].kind
            assert shown[name] == ("…" if value is None else f"{value}".lower().removesuffix(".0"))
            assert value is None or isinstance(value, kind)


@pytest.mark.parametrize("columns", ["60", "80"])
def test_help_cuts_nothing_off_on_a_narrow_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    shown = run("--config=awd", "--help").out
    for choices in (x.choices for name, x in settings().items() if x.choices and name != "name"):
        assert f"<{' | '.join(choices)}>:" in " ".join(shown.split())
    assert "--learning_rate=0.428571… " in shown
    assert all(len(line) <= int(columns) for line in shown.splitlines())
    assert not any(line.endswith(" ") for line in shown.splitlines())


def test_help_groups_flags_by_what_they_are_for(groups):
    of_medium = " (values of --config=medium)"
    for name, title in (
        ("mc_samples", "of this program"),
        ("train_file", "text" + of_medium),
        ("hidden_size", "model" + of_medium),
        ("dropout", "regularizers" + of_medium),
        ("seed", "training" + of_medium),
        ("chunk", "computation" + of_medium),
        ("tensorboard", "folder and reports"),
        ("num_processes", "several hosts"),
        ("version", "help"),
    ):
        assert [group for group in groups if name in groups[group]] == [title]


def test_help_of_a_program_leaves_out_what_it_refuses(tmp_path):
    (outcome,) = run_elsewhere("experiments.reproduce", ["--help"], cwd=tmp_path)
    assert "\n  --hidden_size=…" in outcome.out
    assert "--config" not in outcome.out


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("lr", "--learning_rate?"),
        ("learning-rate", "--learning_rate?"),
        ("num_layers", "--layers?"),
        ("hidden", "--hidden_size?"),
        ("gpus", "leave it out;"),
    ],
)
def test_unknown_flag_is_answered_with_those_that_may_be_meant(wrong, meant):
    assert f"{meant} see --help" in about_unknown_flag(wrong, ptb.main)
