"""The paper's table 1 as Markdown, its figures beside ours, from records alone."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.records import Record, model_name
from zaremba_jax.config import PAPER_PERPLEXITIES, PRESETS, Config, override

# Test perplexity of single models: the docstring of ptb_word_lm.py in TensorFlow's tutorial, and
# pull request 2276 of tensorflow/models, where its block cell was measured.
TENSORFLOW = {"small": (115.91, 115.52), "medium": (82.07, 83.47), "large": (78.29, 78.49)}

Mixtures = dict[str, dict[str, Any]]

_HEADER = (
    ("model", ":--"),
    ("averaged", "--:"),
    ("validation", "--:"),
    ("paper", "--:"),
    ("test", "--:"),
    ("paper", "--:"),
    ("TensorFlow", "--:"),
    ("models", ":--"),
    ("training time", ":--"),
)
_LEGEND = """\
Perplexity. One model: mean ± standard deviation over seeds. Several: the probabilities of so many
models averaged for each token (section 4.1), mean ± standard deviation over sets of them, all sets
or 100 drawn at random. Validation and test are read as one stream, all N - 1 predictions counted.
Training time is that of all the models of the row, evaluation after each epoch included."""


def table1(records: list[Record], mixtures: Mixtures) -> str:
    """The whole page.

    Args:
      records: of finished runs.
      mixtures: records of `reproduction.mix`, by label.
    """
    shown = [
        model
        for name in PAPER_PERPLEXITIES
        for model in (PRESETS[name], override(PRESETS[name], precision="bfloat16"))
        if model.compute.precision == "float32" or any(r.model == model for r in records)
    ]
    lines = [line for model in shown for line in _lines(model, records, mixtures)]
    parts = ["# Table 1: Penn Treebank", _LEGEND, _markdown(_HEADER, lines)]
    parts += _other_choices(records)
    return "\n\n".join(parts) + "\n"


def _lines(model: Config, records: list[Record], mixtures: Mixtures) -> list[list[str]]:
    """The table's lines of one model, one for each number that is averaged."""
    own = [record for record in records if record.model == model]
    mixed = mixtures.get(model_name(model), {"mixtures": [], "seeds": []})
    measured = {m["members"]: m for m in mixed["mixtures"]}
    paper = PAPER_PERPLEXITIES[model.name]
    lines = []
    for size in sorted({1, *paper, *measured}):
        if size == 1:
            cells = [*_single(own), _models(sum(len(r.perplexities) for r in own)), _time(own)]
        elif size in measured:
            pool = [record for record in own if record.perplexities.keys() & set(mixed["seeds"])]
            sets = measured[size]["subsets"]
            cells = [*_mixture(measured[size]), _models(len(mixed["seeds"]), sets), _time(pool)]
        else:
            cells = ["not run", "not run", "", ""]
        valid, test, models, time = cells
        figures = [f"{figure:.1f}" for figure in paper.get(size, ())] or ["", ""]
        tensorflow = " to ".join(f"{f:.1f}" for f in sorted(TENSORFLOW[model.name]))
        lines.append(
            [
                model_name(model),
                str(size),
                valid,
                figures[0],
                test,
                figures[1],
                tensorflow if size == 1 else "",
                models,
                time,
            ]
        )
    return lines


def _single(records: list[Record]) -> tuple[str, str]:
    figures = [pair for record in records for pair in record.perplexities.values()]
    if not figures:
        return "not run", "not run"
    valid, test = zip(*figures, strict=True)
    return mean(valid), mean(test)


def mean(figures: Sequence[float]) -> str:
    """The mean, with the standard deviation where there are several."""
    spread = f" ± {statistics.stdev(figures):.1f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.1f}{spread}"


def _mixture(found: dict[str, Any]) -> tuple[str, str]:
    valid, test = (
        f"{found[f'{split}_perplexity']:.1f}"
        + (f" ± {found[f'{split}_spread']:.1f}" if found["subsets"] > 1 else "")
        for split in ("valid", "test")
    )
    return valid, test


def _models(count: int, sets: int = 0) -> str:
    return (f"{count}" + (f", {sets} sets" if sets > 1 else "")) if count else ""


def _time(records: list[Record]) -> str:
    """Hours by the device, most recent last."""
    hours: dict[str, float] = {}
    for record in records:
        device = record.summary["device"]
        hours[device] = hours.get(device, 0.0) + record.summary["seconds"] / 3600
    return "; ".join(f"{spent:.1f} h, {device}" for device, spent in hours.items())


def _other_choices(records: list[Record]) -> list[str]:
    """Models that differ from a preset, each beside the preset on the same seeds."""
    others = {
        model_name(r.model): r.model
        for r in records
        if r.model.name in PAPER_PERPLEXITIES and r.model != PRESETS[r.model.name]
    }
    lines = []
    for name, model in sorted(others.items()):
        own, preset = (
            {seed: pair for r in records if r.model == m for seed, pair in r.perplexities.items()}
            for m in (model, PRESETS[model.name])
        )
        cells = [mean(figures) for figures in zip(*own.values(), strict=True)]
        for split in (0, 1):
            changes = [own[seed][split] - preset[seed][split] for seed in own if seed in preset]
            cells.append(f"{statistics.mean(changes):+.1f}" if changes else "")
        lines.append([name, *cells, str(len(own))])
    if not lines:
        return []
    titles = ("validation", "test", "change", "change of test", "models")
    header = [("setting", ":--"), *[(title, "--:") for title in titles]]
    return [
        "## Other choices",
        "Models that differ from a preset, one model each time; the change is the mean over the"
        " seeds that the preset was trained with too.",
        _markdown(header, lines),
    ]


def _markdown(header: Sequence[tuple[str, str]], lines: list[list[str]]) -> str:
    titles, rules = zip(*header, strict=True)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (titles, rules, *lines))
