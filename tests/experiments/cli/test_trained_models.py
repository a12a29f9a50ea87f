"""How programs find trained models."""

import numpy as np
import pytest
from model_examples import make, put_model

from experiments.cli.trained_models import load_models, single_model
from experiments.training.run_folder import Workdir
from experiments.training.written_files import write_json
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.presets import QUICK


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, an ensemble, a run that is not finished, a record, and a run on another text."""
    folder = tmp_path_factory.mktemp("runs")
    put_model(Workdir(folder / "run").model, make())
    put_model(Workdir(folder / "dropout=0,0.5").model, make(seed=7))
    for seed in (3, 4):
        put_model(Workdir(folder / "ensemble").member(seed), make(seed))
    for name in ("unfinished", "record"):
        (folder / name).mkdir()
        Workdir(folder / name).write_config(QUICK)
    write_json(Workdir(folder / "record").summary, {})
    put_model(Workdir(folder / "other").model, make(vocabulary=Vocabulary(("a", "b"))))
    return folder


def test_models_are_found_in_runs_ensembles_and_files(folder):
    models = load_models([str(folder / "run"), str(folder / "ensemble")])
    assert [model.config.seed for model in models] == [0, 3, 4]
    (member,) = load_models([str(folder / "ensemble" / "members" / "seed-4.safetensors")])
    np.testing.assert_array_equal(models[2].params.embedding, member.params.embedding)
    (of_a_sweep,) = load_models([str(folder / "dropout=0,0.5")])
    assert of_a_sweep.config.seed == 7


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["absent"], "absent: holds no model; name the --workdir of a run"),
        (["unfinished"], "unfinished: holds a run that has saved no model yet; wait for its first"),
        (["record"], "record: holds the record of a finished run without its model; name the"),
        (["run", "other"], r"other/model\.safetensors: its vocabulary is not that of .*run/model"),
        ([], "--workdir: names no model"),
        (["ensemble", "ensemble/members/seed-4.safetensors"], "names .*/seed-4.* twice; name each"),
    ],
)
def test_folder_without_a_model_that_fits_is_refused(folder, names, reason):
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        load_models([str(folder / name) for name in names])


def test_flag_of_one_model_that_names_none_is_refused_as_one_that_names_none():
    with pytest.raises(ValueError, match="--workdir: names no model; give the folder of a run"):
        single_model([], "workdir")
