"""Scores a text with trained models: `python -m experiments.score --workdir=runs/small FILE`."""

import functools
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import flags
from absl.flags import FLAGS

from experiments.cli import program
from experiments.cli.flag_kinds import define_path, define_paths
from experiments.cli.outputs import refuse_to_replace
from experiments.cli.terminal import Terminal, write_out
from experiments.cli.trained_models import load_models
from experiments.reports.score_files import is_of_scores, write_records
from experiments.training.epoch_display import format_figure
from zaremba_jax.array_types import Windows
from zaremba_jax.data.text_files import find_files
from zaremba_jax.data.units import UNITS, UNK
from zaremba_jax.data.vocabulary import listed
from zaremba_jax.data.windows import windows
from zaremba_jax.errors import InputError
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.inference import text_scoring
from zaremba_jax.inference.dynamic_evaluation import DynamicConfig, dynamic_nll, mean_squares
from zaremba_jax.inference.neural_cache import CacheConfig, neural_cache_nll
from zaremba_jax.model import Model

TAKES = "FILE"
_STREAMS = 100  # of the training text, for the gradients that the rule rms needs

_RMS_FLAGS = ("train_file", "dynamic_epsilon")
_RATES = {"sgd": 0.3, "rms": 4e-4}  # found on the Penn Treebank's validation text
_REQUIRED_FLAGS = {
    "each": "scores",
    **{f"dynamic_{name}": "dynamic" for name in ("rate", "decay", "segment")},
    **{f"cache_{name}": "cache_window" for name in ("theta", "weight")},
}

define_paths("workdir", [], "finished runs, ensembles or .safetensors files; several are averaged")
define_path("scores", None, "file for log probabilities, ending in .jsonl or .tsv")
flags.DEFINE_enum("each", "sentence", ["sentence", "token"], "what each line of --scores holds")
flags.DEFINE_bool("independent", False, "score each line on its own, as in an n-best list")
flags.DEFINE_bool("utterance_ids", False, "the first word of each line is its id, not text")
flags.DEFINE_enum("dynamic", None, ["sgd", "rms"], "keep learning from the text, by this rule")
_DEFAULTS = ", ".join(f"{rate:g} for {rule}" for rule, rate in _RATES.items())
flags.DEFINE_float("dynamic_rate", None, f"learning rate (default: {_DEFAULTS})", lower_bound=0)
flags.DEFINE_float(
    "dynamic_decay",
    0.002,
    "fraction of the way back to the trained parameters that each step goes",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer("dynamic_segment", 5, "tokens between two steps", lower_bound=1)
flags.DEFINE_float(
    "dynamic_epsilon",
    4e-4,
    "for rms: bounds the steps of parameters with hardly any gradient; at least 1.2e-38",
    lower_bound=0,
)
define_path("train_file", None, "for rms: training text, whose gradients scale the steps")
flags.DEFINE_integer(
    "cache_window", 0, "positions that a neural cache keeps; 0: no cache", lower_bound=0
)
flags.DEFINE_float(
    "cache_theta", 0.6, "how strongly the cache prefers similar states", lower_bound=0
)
flags.DEFINE_float(
    "cache_weight", 0.1, "share of the cache in the probability; above 0 and below 1"
)


def main(file: str) -> None:
    """Scores a text with the models, prints its perplexity, and writes the scores of its parts."""
    scores = scores_path(file)
    check_flags()
    models = load_models(FLAGS.workdir)
    score = scorer_from_flags(models[0])
    if FLAGS.independent and models[0].vocabulary.line_end is None:
        raise InputError("--independent: the model's text had no line ends; leave it out")
    text = text_scoring.read_text(
        file,
        models[0],
        whole_lines=FLAGS.independent,
        with_utterance_ids=FLAGS.utterance_ids,
    )
    with Terminal(stderr=True).status(f"reading {file}"):
        if FLAGS.independent:
            nll = text_scoring.independent_nll(models, text)
        else:
            nll = text_scoring.stream_nll(models, text, score)
    check_scores(file, nll if FLAGS.independent else nll[1:])
    try:  # what is kept first: whoever reads the report may leave early
        if scores is not None:
            write_records(scores, text_scoring.records(text, nll, FLAGS.each))
    finally:
        print_scores(file, models, text, nll)


def scores_path(file: str) -> Path | None:
    """The path for `--scores`, if given; refuses one that would replace another file."""
    if FLAGS.scores is None:
        return None
    path = Path(FLAGS.scores)
    if path.suffix not in (".jsonl", ".tsv"):
        raise InputError(f"--scores={path}: end the name in .jsonl or .tsv")
    for text in (file, FLAGS.train_file):
        pieces = [] if text is None else find_files(text, read_once=True)
        if os.path.realpath(path) in {os.path.realpath(piece.path) for piece in pieces}:
            raise InputError(f"--scores={path}: would replace {text}, which is read; name another")
    refuse_to_replace("scores", path, "a file of scores", is_of_scores)
    return path


def check_flags() -> None:
    """Refuses flags of which one has no effect without another, or excludes it."""
    for name, other in _REQUIRED_FLAGS.items():
        if FLAGS[name].present and not FLAGS[other].value:
            raise InputError(f"--{name}: has no effect without --{other}; give that too")
    for name in _RMS_FLAGS:
        if FLAGS[name].present and FLAGS.dynamic != "rms":
            raise InputError(f"--{name}: has no effect without --dynamic=rms; give that too")
    if FLAGS.dynamic == "rms" and FLAGS.train_file is None:
        raise InputError("--dynamic=rms: give the training text with --train_file, or use sgd")
    if FLAGS.dynamic is not None and FLAGS.cache_window:
        raise InputError("--dynamic, --cache_window: give one of the two")
    if FLAGS.independent and (FLAGS.dynamic is not None or FLAGS.cache_window):
        raise InputError(
            "--independent: lines have no past, which --dynamic and --cache_window need; leave it"
            " or them out"
        )


def scorer_from_flags(model: Model) -> text_scoring.Scorer:
    """The function that reads a text by one of the models; `model` says how texts are read."""
    if FLAGS.cache_window:
        cache = CacheConfig(
            window=FLAGS.cache_window, theta=FLAGS.cache_theta, weight=FLAGS.cache_weight
        )
        return functools.partial(neural_cache_nll, config=cache)
    if FLAGS.dynamic is None:
        return text_nll
    rate = FLAGS.dynamic_rate
    dynamic = DynamicConfig(
        rule=FLAGS.dynamic,
        rate=_RATES[FLAGS.dynamic] if rate is None else rate,
        decay=FLAGS.dynamic_decay,
        segment=FLAGS.dynamic_segment,
        epsilon=FLAGS.dynamic_epsilon,
    )
    train = windows_of_train_file(model, dynamic.segment) if dynamic.rule == "rms" else None
    return functools.partial(score_dynamically, dynamic, train)


def windows_of_train_file(model: Model, segment: int) -> Windows:
    """The text of `--train_file`, cut into windows of a segment."""
    train = text_scoring.read_text(FLAGS.train_file, model).stream
    streams = min(_STREAMS, len(train) // (segment + 1))
    if streams < 1:
        raise InputError(
            f"--train_file={FLAGS.train_file}: {len(train)} tokens are fewer than the"
            f" {segment} + 1 of a step; give more, or a lower --dynamic_segment"
        )
    return jnp.asarray(windows(train, streams, segment))


def score_dynamically(
    dynamic: DynamicConfig, train: Windows | None, model: Model, ids: np.ndarray
) -> np.ndarray:
    """Dynamic evaluation; the rule rms takes the gradients of the windows `train`."""
    squares = None if train is None else mean_squares(model, train)
    return dynamic_nll(model, ids, dynamic, squares)


def check_scores(file: str, nll: np.ndarray) -> None:
    """Refuses the scores of a broken model, such as one that learned too fast."""
    figure = perplexity(nll)
    if not math.isfinite(figure):
        remedy = (
            "name another model"
            if FLAGS.dynamic is None
            else "try a lower --dynamic_rate or, for rms, a higher --dynamic_epsilon"
        )
        raise InputError(f"{file}: a perplexity of {figure}, the scores are not finite; {remedy}")


def print_scores(file: str, models: list[Model], text: text_scoring.Text, nll: np.ndarray) -> None:
    """Prints the perplexity, with and without the unknown tokens, and names these."""
    is_scored = ~np.isnan(nll)
    scored, known = nll[is_scored], nll[is_scored & text.is_known]
    unit, unknown = UNITS[text.vocabulary.unit], sum(text.unknown.values())
    bits = f", {math.log2(perplexity(scored)):.3f} bits per {unit.noun}"
    bits = bits if unit.reported_in_bits else ""
    averaged = "" if len(models) == 1 else f", {len(models)} models averaged"
    write_out(
        f"{file}: perplexity {format_figure(perplexity(scored))}, {scored.mean():.4f} nats per"
        f" token{bits}, {len(scored):,} tokens in {len(text.raw_lines):,} lines{averaged}"
    )
    if not text.vocabulary.reads_line_ends:
        write_out(f"the ends of lines are left out: the model has no {unit.noun} for them")
    if unknown:
        write_out(
            f"{unit.noun}s unknown to the model, read as {UNK}: {unknown:,} tokens,"
            f" {len(text.unknown):,} different: {listed(text.unknown)}"
        )
    if 0 < len(known) < len(scored):
        write_out(
            f"without {UNK}: perplexity {format_figure(perplexity(known))}, {known.mean():.4f} nats"
            f" per token, {len(known):,} tokens"
        )


if __name__ == "__main__":
    program.run(main)
