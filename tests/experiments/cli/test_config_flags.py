"""Flags of the configuration, and the folder that is named after them."""

import functools
import re
import sys

import pytest
from absl.flags import FLAGS
from invoke import assert_refused, run

from experiments import ptb
from experiments.cli.config_flags import config_from_flags
from experiments.training.written_files import write_json
from zaremba_jax.config import settings, to_dict
from zaremba_jax.presets import MEDIUM, PRESETS, QUICK

# For each setting, a value that quick, small and medium do not have.
OTHER = {
    "corpus": "text8",
    "seed": 7,
    "patience": 9,
    "decay_when_stalled": 8,
    "unit": "char",
    "vocab_size": 29,
    "min_count": 31,
    "layers": 3,
    "hidden_size": 11,
    "init_scale": 0.25,
    "cell": "gru",
    "embedding_size": 11,
    "tie_weights": True,
    "second_bias": True,
    "carry_over_epochs": True,
    "dropout": 0.35,
    "hidden_dropout": 0.15,
    "mask_each": "window",
    "update_dropout": 0.05,
    "word_dropout": 0.01,
    "zoneout_hidden": 0.45,
    "zoneout_cell": 0.55,
    "dropconnect": 0.65,
    "l1": 0.001,
    "l2": 0.002,
    "activation_l2": 3.5,
    "temporal_activation_l2": 4.5,
    "batch_size": 13,
    "unroll": 17,
    "epochs": 19,
    "learning_rate": 0.075,
    "constant_epochs": 5,
    "decay_divisor": 1.75,
    "clip_norm": 2.5,
    "precision": "bfloat16",
    "kernel": "scan",
    "softmax_tokens": 23,
    "output_size": 11,
    "input_dropout": 0.85,
    "output_dropout": 0.75,
    "weight_decay": 0.003,
    "random_offset": True,
    "average_from": 37,
    "average_after_stall": 41,
    "keep": "best",
    "optimizer": "adam",
}
# What the presets' other values do not admit, with what it needs.
NEEDED = {"optimizer": {"learning_rate": 0.001}}


@pytest.fixture
def parsed():
    """A function that parses a command line; flags are reset after the test."""
    yield lambda *argv: FLAGS([sys.argv[0], *argv])
    FLAGS.unparse_flags()


def test_every_setting_but_name_and_fingerprints_is_a_flag_described_as_in_the_configuration():
    assert settings().keys() == OTHER.keys() | {"name", "vocabulary", "init_from"}
    for name in OTHER:
        setting, flag = settings()[name], FLAGS[name]
        choices = f"<{'|'.join(setting.choices)}>: " if setting.choices else ""
        assert flag.help.startswith(f"{choices}{setting.description}")
        assert flag.parser.parse(str(OTHER[name])) == OTHER[name]
        assert type(flag.parser.parse(str(OTHER[name]))) is setting.kind


@functools.cache
def help_text() -> str:
    return run("--help").out


# How much a number must move to cross a limit by the least that a flag is refused for.
BEYOND = {"at_least": -1, "at_most": 1, "above": 0, "below": 0}


@pytest.mark.parametrize("name", [name for name, setting in settings().items() if setting.limits])
def test_every_limit_of_a_setting_is_told_by_help_and_refused_in_one_line(name):
    setting, (_, told) = settings()[name], help_text().split(f"\n  --{name}=")
    told = " ".join(told.partition("\n  --")[0].split())
    for limit, bound in setting.limits.items():
        strict = limit in ("above", "below") and setting.kind is float
        words = f"{limit} {bound:g}" if strict else r"a (positive|non-negative)|>=|in the range"
        assert re.search(words, told)
        beyond = setting.kind(bound + BEYOND[limit])
        assert_refused(run(f"--{name}={beyond}"), f"{name}={beyond}: ")


def test_one_of_a_few_words_is_refused_with_all_of_them():
    for name, setting in settings().items():
        if setting.choices and name != "name":
            refused = run(f"--{name}=other")
            assert_refused(refused, f"--{name}=other: ", f"one of <{'|'.join(setting.choices)}>")


def test_flags_of_the_configuration_belong_to_the_program():
    assert {flag.name for flag in FLAGS.get_key_flags_for_module(ptb.__name__)} >= OTHER.keys()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_preset_without_flags_is_the_preset(parsed, preset):
    parsed(f"--config={preset.name}")
    assert config_from_flags() == (preset, {})


def test_quick_is_what_a_bare_command_runs(parsed):
    parsed()
    assert config_from_flags() == (QUICK, {})


@pytest.mark.parametrize("name", OTHER)
def test_flag_overrides_its_setting_and_no_other(parsed, name):
    asked = {name: OTHER[name], **NEEDED.get(name, {})}
    parsed("--config=medium", *(f"--{name}={value}" for name, value in asked.items()))
    config, changes = config_from_flags()
    assert changes == asked
    assert to_dict(config) == to_dict(MEDIUM) | changes


def test_zero_overrides_as_well(parsed):
    parsed("--config=medium", "--dropout=0", "--constant_epochs=0")
    config, changes = config_from_flags()
    assert changes == {"dropout": 0.0, "constant_epochs": 0}
    assert to_dict(config) == to_dict(MEDIUM) | changes


def test_default_workdirs_differ_when_settings_differ(parsed):
    lines = [[f"--config={name}"] for name in PRESETS]
    alone = OTHER | {"unit": "word"}  # the Treebank has no other
    for name, value in alone.items():
        asked = {name: value, **NEEDED.get(name, {})}
        lines.append(["--config=medium", *(f"--{name}={x}" for name, x in asked.items())])
    lines += [["--config=medium", "--seed=7", "--layers=3"], ["--seed=71"], ["--hidden_size=110"]]
    paths = set()
    for line in lines:
        parsed(*line)
        paths.add(ptb.configure()[1].path)
        FLAGS.unparse_flags()
    assert len(paths) == len(lines)
    assert {str(path.parent) for path in paths} == {"runs"}


def test_default_workdir_is_the_same_for_the_same_flags_in_any_order(parsed):
    together = OTHER | {"cell": "lstm"}  # the only cell that admits every setting
    line = ["--config=small", *(f"--{name}={value}" for name, value in together.items())]
    parsed(*line)
    workdir = ptb.configure()[1]
    FLAGS.unparse_flags()
    parsed(*reversed(line))
    assert ptb.configure()[1].path == workdir.path
    assert len(workdir.path.name) < 255


def test_long_names_of_workdirs_stay_different(parsed):
    paths = set()
    for last in ("3.25", "3.5"):
        parsed(*(f"--{name}={value}" for name, value in OTHER.items() if name != "zoneout_cell"))
        parsed("--zoneout_cell=0", f"--activation_l2={last}")
        paths.add(ptb.configure()[1].path)
        FLAGS.unparse_flags()
    assert len(paths) == 2


def test_workdir_flag_names_the_folder_as_it_is(parsed):
    parsed("--workdir=some/where")
    assert str(ptb.configure()[1].path) == "some/where"


def test_own_text_makes_the_corpus_files(parsed):
    parsed("--config=medium", "--train_file=a", "--valid_file=b", "--test_file=c")
    config, workdir = ptb.configure()
    assert to_dict(config) == to_dict(MEDIUM) | {"corpus": "files", "keep": "best"}
    assert workdir.path.name == "medium-corpus=files"
    parsed("--layers=3")
    told = ptb.configure()[1].path.name
    parsed("--corpus=files")  # says no more than --train_file does
    assert ptb.configure()[1].path.name == told == "medium-layers=3-corpus=files"


@pytest.mark.parametrize(
    ("flags", "keep"), [([], "best"), (["--keep=last"], "last")], ids=["new", "asked for"]
)
def test_run_on_own_text_keeps_the_best_unless_it_began_otherwise(parsed, tmp_path, flags, keep):
    own = (f"--workdir={tmp_path}", "--train_file=a", "--valid_file=b", "--test_file=c")
    parsed(*own, *flags)
    config, workdir = ptb.configure()
    assert config.train.keep == keep
    write_json(workdir.config, to_dict(config))
    FLAGS.unparse_flags()
    parsed(*own)  # as the run in the folder
    assert ptb.configure()[0] == config


@pytest.mark.parametrize(
    ("corpus", "unit"), [("ptb-char", "char"), ("text8", "char"), ("enwik8", "byte")]
)
def test_configuration_has_the_unit_of_its_corpus(parsed, corpus, unit):
    parsed("--config=medium", f"--corpus={corpus}")
    assert ptb.configure()[0].unit == unit
