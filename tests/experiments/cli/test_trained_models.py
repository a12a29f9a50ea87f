"""How programs find trained models, and what they do with unknown words."""

import jax
import numpy as np
import pytest
from invoke import assert_refused, run_elsewhere

from experiments.cli.trained_models import listed, load_models, prompt_ids, unknown_tokens
from experiments.training.run_folder import Workdir, write_json, write_model
from zaremba_jax.config import QUICK, override
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.inference.generation import Sampling, generate
from zaremba_jax.interop.model_file import Model
from zaremba_jax.model import init_params

WORDS = Vocabulary(("the", "<eos>", "cat", "<unk>", "sat"))


def make(seed=0, vocabulary=WORDS):
    config = override(QUICK, layers=1, hidden_size=3, seed=seed, init_scale=1.0)
    params = init_params(config.model, len(vocabulary), key=jax.random.key(seed))
    return Model(params, config, vocabulary)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, an ensemble, a run that is not finished, a record, and a run on another text."""
    folder = tmp_path_factory.mktemp("runs")
    write_model(Workdir(folder / "run").model, make())
    write_model(Workdir(folder / "dropout=0,0.5").model, make(seed=7))
    for seed in (3, 4):
        write_model(Workdir(folder / "ensemble").member(seed), make(seed))
    for name in ("unfinished", "record"):
        Workdir(folder / name).create(QUICK)
    write_json(Workdir(folder / "record").summary, {})
    write_model(Workdir(folder / "other").model, make(vocabulary=Vocabulary(("a", "b"))))
    return folder


def test_models_are_found_in_runs_ensembles_and_files(folder):
    paths = [folder / "run", folder / "ensemble", folder / "ensemble" / "members"]
    paths[2] /= "seed-4.safetensors"
    models = load_models([str(path) for path in paths])
    assert [model.config.seed for model in models] == [0, 3, 4, 4]
    np.testing.assert_array_equal(models[2].params.embedding, models[3].params.embedding)
    (of_a_sweep,) = load_models(f"{folder}/dropout=0,0.5".split(","))  # as the flag is parsed
    assert of_a_sweep.config.seed == 7
    assert len(load_models([str(folder / "run")] * 99)) == 99  # longer than any path can be


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["absent"], "absent: holds no model; name the --workdir of a finished run"),
        (["unfinished"], "unfinished: holds a run that has written no model yet; give its command"),
        (["record"], "record: holds the record of a finished run without its model; name the"),
        (["run", "other"], r"other/model\.safetensors: its vocabulary is not that of .*run/model"),
        ([], "--workdir: names no model"),
    ],
)
def test_folder_without_a_model_that_fits_is_refused(folder, names, reason):
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        load_models([str(folder / name) for name in names])


def test_prompt_begins_a_line_where_the_vocabulary_has_line_ends():
    assert prompt_ids(WORDS, "the cat")[0].tolist() == [1, 0, 2]
    assert prompt_ids(WORDS, "")[0].tolist() == [1]
    assert prompt_ids(Vocabulary(("\n", "a"), "char"), "aa")[0].tolist() == [0, 1, 1]
    assert prompt_ids(Vocabulary(("a", "b"), "char"), "ba")[0].tolist() == [1, 0]


def test_unknown_words_of_a_prompt_are_read_as_unk_and_told():
    ids, unknown = prompt_ids(WORDS, "dog the dog bit")
    assert ids.tolist() == [1, 3, 0, 3, 3]
    assert unknown == {"dog": 2, "bit": 1}
    assert listed(unknown) == "dog (2 times), bit"
    assert listed(unknown, most=1) == "dog (2 times) and 1 more"
    assert unknown_tokens(WORDS, ["<unk>", "the"]) == {}


@pytest.mark.parametrize(
    ("words", "unit", "prompt", "reason"),
    [
        (("a", "<eos>"), "word", "a zebra", "--prompt=a zebra: not among the 2 words .*: zebra;"),
        (("a", "b"), "char", "añ", "not among the 2 characters of the model: ñ; leave them out"),
        (("a", "b"), "char", "", "no line ends to begin at; give a character"),
    ],
)
def test_prompt_that_cannot_be_read_is_refused(words, unit, prompt, reason):
    with pytest.raises(ValueError, match=reason):
        prompt_ids(Vocabulary(words, unit), prompt)


def test_generate_writes_texts_and_refuses_mistakes_in_one_line(folder):
    begin = ["--workdir=ensemble", "--prompt=the cat zebra", "--length=9", "--samples=2"]
    first, rerun, other, greedy, likeliest, *refused = run_elsewhere(
        "experiments.generate",
        begin,
        begin,
        [*begin, "--seed=1"],
        ["--workdir=run", "--temperature=0", "--length=4"],
        ["--workdir=run", "--top_k=1", "--length=4", "--temperature=3"],
        ["--workdir=absent"],
        ["--workdir=other", "--prompt=zebra"],
        ["--workdir=run", "--top_p=0"],
        ["--workdir=run", "--length=0"],
        [],
        cwd=folder,
    )
    assert (first.status, first.err) == (0, "words unknown to the model, read as <unk>: zebra\n")
    texts = first.out.split("\n---\n")
    assert len(texts) == 2
    for text in texts:
        words = WORDS.tokenize(text)
        assert words[:3] == ["the", "cat", "<unk>"]
        assert set(words) <= set(WORDS.words)
    assert first == rerun
    assert first.out != other.out
    (one,), (start, _) = load_models([str(folder / "run")]), prompt_ids(WORDS, "")
    (drawn,) = generate([one], start, 4, sampling=Sampling(temperature=0.0), key=jax.random.key(0))
    assert greedy == (0, WORDS.detokenize(drawn).strip("\n") + "\n", "")
    assert likeliest == greedy
    reasons = [
        "absent: holds no model",
        "--prompt=zebra: not among the 2 words of the model: zebra",
        "top_p=0.0: must be above 0",
        "length=0",
        "workdir",
    ]
    for outcome, reason in zip(refused, reasons, strict=True):
        assert_refused(outcome, reason)
