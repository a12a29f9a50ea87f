import dataclasses
import re

import pytest

from zaremba_jax.config import ComputeConfig, completed, override, settings, to_dict
from zaremba_jax.presets import (
    AWD,
    LARGE,
    MEDIUM,
    PAPER_PERPLEXITIES,
    PRESETS,
    QUICK,
    SMALL,
    from_dict,
)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (SMALL, (2, 200, 0.1, 0.0, 20, 20, 13, 1.0, 4, 2.0, 5.0)),
        (MEDIUM, (2, 650, 0.05, 0.5, 20, 35, 39, 1.0, 6, 1.2, 5.0)),
        (LARGE, (2, 1500, 0.04, 0.65, 20, 35, 55, 1.0, 14, 1.15, 10.0)),
    ],
    ids=["small", "medium", "large"],
)
def test_presets_hold_the_numbers_of_section_4_1(preset, expected):
    flat = to_dict(preset)
    names = ("layers", "hidden_size", "init_scale", "dropout", "batch_size", "unroll", "epochs")
    names += ("learning_rate", "constant_epochs", "decay_divisor", "clip_norm")
    assert tuple(flat[name] for name in names) == expected
    assert (flat["name"], flat["corpus"], flat["seed"]) == (preset.name, "ptb", 0)
    assert preset.compute == ComputeConfig(
        precision="float32", kernel="custom_vjp", softmax_tokens=0
    )
    # Nothing else is on: an LSTM with equal sizes and dropout only.
    others = flat.keys() - {*names, "name", "corpus", "seed", *vars(preset.compute)}
    assert {name: flat[name] for name in others if flat[name]} == {
        "cell": "lstm",
        "optimizer": "sgd",
        "mask_each": "step",
        "unit": "word",
        "min_count": 1,
        "keep": "last",
    }


def test_awd_has_the_numbers_of_its_source_scaled_to_a_loss_summed_over_time():
    steps = AWD.train.unroll
    assert (AWD.train.learning_rate * steps, AWD.train.clip_norm / steps) == (30, 0.25)
    assert AWD.regularizers.weight_decay / steps == pytest.approx(1.2e-6)
    assert AWD.model.layer_sizes == (1150, 1150, 400)
    unscaled = {
        **{"tie_weights": True, "init_scale": 0.04, "mask_each": "window"},
        **{"dropout": 0.25, "input_dropout": 0.4, "output_dropout": 0.4, "word_dropout": 0.1},
        **{"dropconnect": 0.5, "activation_l2": 2, "temporal_activation_l2": 1},
        **{"batch_size": 20, "unroll": 70, "epochs": 500, "random_offset": True},
        **{"average_after_stall": 5, "keep": "best"},
        **{"l1": 0, "l2": 0, "decay_divisor": 1},  # nothing decays but the weights
    }
    assert {name: to_dict(AWD)[name] for name in unscaled} == unscaled


def test_every_preset_of_the_paper_has_the_paper_s_figures_and_no_other_has_any():
    assert PRESETS.keys() - PAPER_PERPLEXITIES.keys() == {"quick", "awd"}
    assert PAPER_PERPLEXITIES["medium"][1] == (86.2, 82.7)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("unit", "letter", "one of word, char, byte"),
        ("vocab_size", -1, "at least 0"),
        ("min_count", 0, "at least 1"),
        ("layers", 0, "at least 1"),
        ("layers", 10**6, "at least 1 and at most 1000"),
        ("hidden_size", 10**31, "at most 100000"),
        ("embedding_size", 100_001, "at most 100000"),
        ("epochs", 10**31, "at least 1 and at most 2147483647"),
        ("hidden_size", -650, "at least 1"),
        ("hidden_size", 2.5, "of type int"),
        ("hidden_size", True, "of type int"),
        ("init_scale", 0.0, "above 0"),
        ("dropout", 1.0, "at least 0 and below 1"),
        ("dropout", 0.99999999, "at least 0 and below 1"),  # 1 in float32
        ("dropout", -0.1, "at least 0 and below 1"),
        ("dropout", float("nan"), "at least 0 and below 1"),
        ("dropout", "half", "of type float"),
        ("batch_size", 0, "at least 1"),
        ("unroll", 0, "at least 1"),
        ("epochs", 0, "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", float("inf"), "finite in float32 and above 0"),
        ("learning_rate", 10**400, "finite in float32 and above 0"),
        ("learning_rate", 1e39, "finite in float32 and above 0"),
        ("learning_rate", 1e-46, "above 0"),  # 0 in float32
        ("constant_epochs", -1, "at least 0"),
        ("decay_divisor", 0.5, "at least 1"),
        ("clip_norm", 0.0, "above 0"),
        ("seed", -1, "at least 0"),
        ("corpus", "wikipedia", "one of toy, ptb, ptb-char, wikitext-2, "),
        ("precision", "float16", "one of float32, bfloat16"),
        ("kernel", "cudnn", "one of auto, scan, custom_vjp, pallas"),
        ("cell", "elman", "one of lstm, gru, tanh"),
        ("embedding_size", -1, "at least 0"),
        ("tie_weights", 1, "of type bool"),
        ("tie_weights", "yes", "of type bool"),
        ("mask_each", "epoch", "one of step, window"),
        ("hidden_dropout", 1.0, "at least 0 and below 1"),
        ("update_dropout", 1.0, "at least 0 and below 1"),
        ("word_dropout", 1.0, "at least 0 and below 1"),
        ("dropconnect", 1.0, "at least 0 and below 1"),
        ("zoneout_hidden", 1.5, "at least 0 and at most 1"),
        ("zoneout_cell", -0.5, "at least 0 and at most 1"),
        ("l1", -1.0, "at least 0"),
        ("l2", float("inf"), "finite in float32 and at least 0"),
        ("activation_l2", -1.0, "at least 0"),
        ("temporal_activation_l2", float("nan"), "finite in float32 and at least 0"),
        ("softmax_tokens", -1, "at least 0"),
        ("output_size", -1, "at least 0"),
        ("output_size", 100_001, "at most 100000"),
        ("input_dropout", 1.0, "at least 0 and below 1"),
        ("output_dropout", "none", "of type float"),
        ("weight_decay", -1e-6, "at least 0"),
        ("average_from", -1, "at least 0"),
        ("average_after_stall", 2.5, "of type int"),
        ("random_offset", 1, "of type bool"),
        ("optimizer", "adamw", "one of sgd, adam"),
        ("keep", "first", "one of last, best"),
        ("dropout", None, "of type float"),
    ],
)
def test_value_outside_its_limits_is_refused_by_name_value_and_reason(name, value, reason):
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: must be .*{reason}"):
        override(QUICK, **{name: value})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"tie_weights": True, "embedding_size": 64},
            "^embedding_size=64: must equal hidden_size=128 for tied weights; set it to 0 or turn",
        ),
        (
            {"tie_weights": True, "output_size": 64},
            "^output_size=64: must equal the embedding's size, 128, for tied weights; set embeddi",
        ),
        (
            {"update_dropout": 0.5, "cell": "tanh"},
            "^update_dropout=0.5: the tanh cell writes no update; set it to 0, or use the lstm",
        ),
        (
            {"zoneout_cell": 0.5, "cell": "gru"},
            "^zoneout_cell=0.5: the gru cell has no cell state c; use zoneout_hidden, or the lstm",
        ),
        (
            {"zoneout_cell": 0.5, "cell": "tanh"},
            "^zoneout_cell=0.5: the tanh cell has no cell state c",
        ),
        (
            {"decay_when_stalled": 2, "decay_divisor": 1.0},
            "^decay_when_stalled=2: decay_divisor=1 leaves the learning rate as it is; give a high",
        ),
        (
            {"decay_when_stalled": 2, "constant_epochs": 6},
            "^decay_when_stalled=2: the learning rate stays the same for constant_epochs=6 of 6",
        ),
        (
            {"decay_when_stalled": 2, "patience": 2},
            "^patience=2: a run would stop before decay_when_stalled=2 divides its learning rate",
        ),
        (
            {"optimizer": "adam"},
            "^learning_rate=1.0: a step of adam would change .* ±0.1 .*; give one near 0.001",
        ),
        ({"optimizer": "adam", "learning_rate": 0.1}, "^learning_rate=0.1: a step of adam"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_a_remedy(changes, reason):
    with pytest.raises(ValueError, match=reason):
        override(QUICK, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_weights": True},
        {"tie_weights": True, "embedding_size": 128},
        {"embedding_size": 64},
        {"tie_weights": True, "embedding_size": 64, "output_size": 64},
        {"tie_weights": True, "output_size": 128},
        {"input_dropout": 0.0, "output_dropout": None},
        {"average_from": 3, "average_after_stall": 5},
        {"optimizer": "adam", "learning_rate": 0.09},
        {"update_dropout": 0.5, "cell": "gru"},
        {"zoneout_hidden": 1.0, "zoneout_cell": 1.0},
        {"zoneout_hidden": 0.5, "cell": "tanh"},
    ],
)
def test_settings_that_go_together_are_accepted(changes):
    flat = to_dict(override(QUICK, **changes))
    assert flat == to_dict(QUICK) | changes


def test_embedding_has_as_many_features_as_the_layers_have_units_unless_told_otherwise():
    assert override(QUICK, hidden_size=7).model.features == 7
    assert override(QUICK, hidden_size=7, embedding_size=3).model.features == 3


def test_all_layers_have_hidden_size_units_but_the_last_if_it_is_told_otherwise():
    assert override(QUICK, layers=3, hidden_size=7).model.layer_sizes == (7, 7, 7)
    assert override(QUICK, layers=3, hidden_size=7, output_size=3).model.layer_sizes == (7, 7, 3)
    assert override(QUICK, layers=1, hidden_size=7, output_size=3).model.layer_sizes == (3,)


def test_settings_of_before_sites_had_rates_of_their_own_are_read_with_that_of_dropout():
    older = to_dict(MEDIUM)
    for name in ("input_dropout", "output_dropout", "output_size", "average_from", "keep"):
        del older[name]
    assert completed(older) == to_dict(from_dict(older)) == to_dict(MEDIUM)
    assert MEDIUM.regularizers.input_dropout is MEDIUM.regularizers.output_dropout is None


def test_override_changes_what_it_names_and_nothing_else():
    changed = override(MEDIUM, dropout=0.25, seed=3, unroll=7)
    assert to_dict(changed) == to_dict(MEDIUM) | {"dropout": 0.25, "seed": 3, "unroll": 7}
    with pytest.raises(ValueError, match="droput: no such setting"):
        override(MEDIUM, droput=0.25)


def test_settings_of_before_custom_vjp_was_called_so_are_read_as_today_s():
    older = to_dict(QUICK) | {"kernel": "xla"}
    assert from_dict(older) == QUICK
    del older["unit"]
    assert completed(older) == to_dict(QUICK)
    assert older["kernel"] == "xla"  # what was read is left as it was
    assert from_dict(older | {"kernel": "scan"}).compute.kernel == "scan"
    with pytest.raises(ValueError, match="kernel='xla': must be one of auto, scan, custom_vjp"):
        override(QUICK, kernel="xla")


def test_every_setting_has_one_name_a_type_and_a_description():
    assert settings().keys() == to_dict(QUICK).keys()
    assert settings()["tie_weights"].kind is bool
    assert all(x.kind in (int, float, str, bool) and x.description for x in settings().values())


def test_configurations_are_frozen_and_equal_by_value():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QUICK.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert override(QUICK, seed=0) == QUICK
    assert hash(override(QUICK, seed=0)) == hash(QUICK)
