"""A model's methods do to strings what the rest of the library does to ids."""

import re

import jax
import numpy as np
import pytest
from model_examples import TEXT, WORDS, make

from zaremba_jax import Model
from zaremba_jax.config import override
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference.generation import Sampling, generate
from zaremba_jax.inference.trained_model import Score
from zaremba_jax.interop.model_card import model_card
from zaremba_jax.interop.model_folder import save_folder

RECORD = make()
MODEL = Model(RECORD.params, RECORD.config, RECORD.vocabulary)


def test_text_is_scored_as_the_beginning_of_a_line():
    nll = text_nll(RECORD, WORDS.encode(["<eos>", *WORDS.tokenize(TEXT)]))
    score = MODEL.score(TEXT)
    assert score.log_probability == pytest.approx(-nll.sum(), rel=1e-6)
    assert score.perplexity == pytest.approx(perplexity(nll), rel=1e-6)
    assert (score.tokens, score.unknown) == (len(nll), 3)  # zebra twice, ran
    with pytest.raises(ValueError, match="nothing to predict"):
        MODEL.score("")


def test_perplexity_beyond_every_float_is_infinite_as_that_of_a_text_is():
    assert Score(log_probability=-2000.0, tokens=2, unknown=0).perplexity == np.inf
    assert perplexity(np.full(2, 1000.0)) == np.inf


def test_generated_text_continues_its_prompt_as_it_is_asked_to():
    prompt, known = WORDS.encode(["<eos>", "the"]), Sampling(never=(WORDS.words.index("<unk>"),))
    (drawn,) = generate([RECORD], prompt, 9, sampling=known, key=jax.random.key(3))
    text = MODEL.generate("the", 9, seed=3)
    assert text == f"the {WORDS.detokenize(drawn)}".replace(" \n", "\n").strip("\n")
    assert MODEL.generate("the", 9, seed=4) != text
    greedy = Sampling(temperature=0.0)
    assert MODEL.generate("the", 9, greedy, seed=3) == MODEL.generate("the", 9, greedy, seed=4)


def test_saved_model_is_loaded_from_its_file_its_run_and_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    MODEL.save("run/model.safetensors")
    save_folder("exported", MODEL, {"test": 12.345})
    for path in ("run/model.safetensors", "run", "exported"):
        model = Model.load(path)
        assert (model.config, model.vocabulary) == (MODEL.config, MODEL.vocabulary)
        jax.tree.map(np.testing.assert_array_equal, model.params, MODEL.params)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "| test | 12.3 |" in card
    assert "| `hidden_size` | 3 |" in card
    assert "trained on\n`toy`: a deep RNN" in card
    own = Model(MODEL.params, override(MODEL.config, corpus="files"), MODEL.vocabulary)
    assert "trained on\na text of its user's: a deep RNN" in model_card(own, {})
    (example,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
    exec(example.replace("FOLDER", "exported"), {})
    assert float(capsys.readouterr().out.split()[-1]) > 1


def test_card_of_a_model_of_characters_has_bits_too():
    perplexities = {"validation": 8.0, "test": 4.0}
    assert "| text | perplexity |\n| --- | --- |\n| validation | 8.0 |\n| test | 4.0 |\n" in (
        model_card(RECORD, perplexities)
    )
    by_characters = model_card(make(vocabulary=Vocabulary(("a", "<unk>"), "char")), perplexities)
    assert "| text | perplexity | bits per character |\n| --- | --- | --- |\n" in by_characters
    assert "| validation | 8.0 | 3.000 |\n| test | 4.0 | 2.000 |\n" in by_characters
    assert "(2014).\n\nIts perplexity is not known.\n\n## How" in model_card(RECORD, {})


def test_folder_that_is_no_model_is_refused_and_left_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors, which a run of one"):
        Model.load(tmp_path)
    with pytest.raises(IsADirectoryError):
        MODEL.save(tmp_path)
    assert [path for path in tmp_path.parent.iterdir() if path.name.endswith(".partial")] == []


def test_run_that_goes_on_to_more_epochs_has_no_model_yet(tmp_path):
    MODEL.save(tmp_path / "model.safetensors")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        ValueError, match=r"is not finished, and its model\.safetensors is of fewer"
    ):
        Model.load(tmp_path)
    (tmp_path / "summary.json").touch()
    assert Model.load(tmp_path).config == MODEL.config


def test_empty_text_has_no_score():
    with pytest.raises(
        ValueError, match="text='': has nothing to predict; give at least one token"
    ):
        MODEL.score("")


def test_first_token_that_nothing_predicts_is_not_counted_as_unknown():
    record = make(vocabulary=Vocabulary(("a", "b", "<unk>"), "char"))
    score = Model(record.params, record.config, record.vocabulary).score("za")
    assert (score.tokens, score.unknown) == (1, 0)
