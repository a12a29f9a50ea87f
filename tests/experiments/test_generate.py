"""The program that generates texts."""

import jax
from invoke import assert_refused, run_elsewhere
from model_examples import WORDS, make, put_model

from experiments.cli.trained_models import load_models
from experiments.training.run_folder import Workdir
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.inference.generation import Sampling, generate
from zaremba_jax.inference.prompts import prompt_ids


def test_generate_writes_texts_and_refuses_mistakes_in_one_line(tmp_path):
    put_model(Workdir(tmp_path / "run").model, make())
    put_model(Workdir(tmp_path / "other").model, make(vocabulary=Vocabulary(("a", "b"))))
    for seed in (3, 4):
        put_model(Workdir(tmp_path / "ensemble").member(seed), make(seed))
    begin = ["--workdir=ensemble", "--prompt=the cat zebra", "--length=9", "--samples=2"]
    first, rerun, other, unknown, line, greedy, likeliest, *refused = run_elsewhere(
        "experiments.generate",
        begin,
        begin,
        [*begin, "--seed=1"],
        [*begin, "--allow_unk", "--length=60"],
        [*begin, "--until=line", "--length=60"],
        ["--workdir=run", "--temperature=0", "--length=4"],
        ["--workdir=run", "--top_k=1", "--length=4", "--temperature=3"],
        ["--workdir=absent"],
        ["--workdir=other", "--prompt=zebra"],
        ["--workdir=other", "--prompt=a", "--until=line"],
        ["--workdir=run", "--top_p=0"],
        ["--workdir=run", "--length=0"],
        ["--workdir=run", "--length=3000000000"],
        [],
        cwd=tmp_path,
    )
    assert (first.status, first.err) == (0, "words unknown to the model, read as <unk>: zebra\n")
    texts = first.out.split("\n---\n")
    assert len(texts) == 2
    for text in texts:
        words = WORDS.tokenize(text)
        assert words[:3] == ["the", "cat", "<unk>"]
        assert set(words[3:]) <= {"the", "<eos>", "cat", "sat"}
    assert first == rerun
    assert first.out != other.out
    assert unknown.out.count("<unk>") > 2
    for text in line.out.removesuffix("\n").split("\n---\n"):
        assert "\n" not in text
    (one,), (start, _) = load_models([str(tmp_path / "run")]), prompt_ids(WORDS, "")
    (drawn,) = generate(
        [one], start, 4, sampling=Sampling(temperature=0.0, never=(3,)), key=jax.random.key(0)
    )
    assert greedy == (0, WORDS.detokenize(drawn).strip("\n") + "\n", "")
    assert likeliest == greedy
    reasons = [
        "absent: holds no model",
        "--prompt=zebra: not among the 2 words of the model: zebra",
        "--until=line: the model's text had no line ends; leave it out",
        "top_p=0.0: must be above 0",
        "length=0",
        "length=3000000000: 3000000000 is not an integer in the range",
        "workdir",
    ]
    for outcome, reason in zip(refused, reasons, strict=True):
        assert_refused(outcome, reason)
