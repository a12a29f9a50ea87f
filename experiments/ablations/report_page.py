"""The ablation's report as Markdown, made from its results only."""

import statistics
from collections.abc import Iterable
from typing import Any

from experiments.reports.markdown import table
from experiments.reports.statistics import format_mean

TITLE = "# What each regularizer does"


def report_page(results: dict[str, Any]) -> str:
    """The whole text: language modelling, memory, corruption, and how it was measured."""
    parts = [TITLE, *_language(results)]
    if results["memory"]["cells"]:
        parts += _memory(results["memory"], results["seeds"])
    parts += [*_corruption(results), *_setting(results)]
    return "\n\n".join(parts) + "\n"


def language_table(results: dict[str, Any]) -> str:
    """Test perplexity of each method on each cell, at the chosen rate."""
    language, titles = results["language_modelling"], results["titles"]
    rows = []
    for method in next(iter(language.values())):
        records = [methods[method] for methods in language.values()]
        rows.append([titles[method], *map(_test_cell, records)])
    floor = results["floor_perplexity"]
    if floor is not None:
        rows.append(["floor of the source", *[f"{floor:.1f}"] * len(language)])
    return table(["test perplexity (rate)", *language], rows)


def memory_table(cells: dict[str, Any]) -> str:
    """Share of symbols named correctly in each bin of lags, the mean over seeds."""
    first = next(iter(cells.values()))
    names = [str(a) if a == b else f"{a}-{b}" for a, b in first["bins"]]
    rows = [
        [
            cell,
            method,
            *map(_format_mean, zip(*record["accuracy"], strict=True)),
            _format_mean(record["nats"]),
        ]
        for cell, results in cells.items()
        for method, record in results["methods"].items()
    ]
    return table(["cell", "method; steps ago:", *names, "nats in training"], rows)


def _language(results: dict[str, Any]) -> list[str]:
    records = [
        (cell, results["titles"][method], record)
        for cell, methods in results["language_modelling"].items()
        for method, record in methods.items()
    ]
    lost = [
        f"{cell}, {title}, {_rates(candidate['rates'])}: {candidate['diverged']}"
        for cell, title, record in records
        for candidate in record["candidates"]
        if candidate["diverged"]
    ]
    tried = [[cell, title, _tried(record)] for cell, title, record in records]
    parts = [
        "## Language modelling",
        f"{_over('Mean ± standard deviation', results['seeds'])}; in brackets, the rate that"
        " validation chose, for the elastic net that of both penalties.",
        language_table(results),
        "![test perplexity of each method](final_perplexities.png)",
        "![validation perplexity over epochs](language_modelling.png)",
        "All candidates. Only the chosen ones were tested.",
        table(["cell", "method", "rate: validation perplexity"], tried, left=range(3)),
    ]
    if lost:
        parts.append(
            "Number of seeds that diverged, whose candidates are not chosen: " + "; ".join(lost)
        )
    return parts


def _over(statistics: str, seeds: int) -> str:
    return "One seed" if seeds == 1 else f"{statistics} over seeds"


def _memory(memory: dict[str, Any], seeds: int) -> list[str]:
    return [
        "## Memory",
        f"The task: one of {memory['symbols']} symbols, then random ones of the same kind; k steps"
        " later, the first has to be named. The question comes with chance 1 / (k + 1), so that"
        " every order of magnitude of k is asked for about equally often."
        f" Dropout rate {memory['rate']:g}, {memory['steps']} batches with Adam; accuracy on fresh"
        f" sequences with dropout off; chance is {memory['chance']:.3f}.",
        memory_table(memory["cells"]),
        "![accuracy over lag](memory.png)",
        f"{_over('Mean and range', seeds)}. The tanh cell keeps everything in h, all of"
        " which ordinary dropout disturbs. The LSTM also has c, which dropout of h[t-1] does not"
        " touch. Nats in training: the mean nats of an answer at the end of training, dropout on.",
    ]


def _corruption(results: dict[str, Any]) -> list[str]:
    record = results["corruption"]
    rows = [[name, *map(str, counts.values())] for name, counts in record["masks"].items()]
    header = ["masks on the way", *(f"k = {lag}" for lag in next(iter(record["masks"].values())))]
    return [
        "## How often information is corrupted",
        f"Counted from the masks of a network of L = {record['layers']} layers, between an input"
        " and the output that many steps later. With the paper's dropout it is L + 1 times,"
        " however many steps there are.",
        table(header, rows),
    ]


def _setting(results: dict[str, Any]) -> list[str]:
    config, versions = results["config"], results["versions"]
    rates = ", ".join(f"{cell} {rate:g}" for cell, rate in results["learning_rates"].items())
    return [
        "## Setting",
        f"{results['corpus']} corpus, its first {results['train_tokens']:,} training tokens;"
        f" {config['layers']} × {config['hidden_size']} units, {config['epochs']} epochs,"
        f" {results['seeds']} seeds. Initial learning rate, the same for all methods: {rates}. Each"
        " model is taken after the epoch with the best validation perplexity. Everything else is in"
        " results.json.",
        f"{results['seconds']:.0f} s on {results['device']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]


def _test_cell(record: dict[str, Any]) -> str:
    if record["chosen"] is None:
        return "not finite"
    rates = _rates(record["candidates"][record["chosen"]]["rates"])
    return format_mean(record["test"]) + (f" ({rates})" if rates else "")


def _tried(record: dict[str, Any]) -> str:
    def tried(candidate: dict[str, Any]) -> str:
        rates, perplexity = _rates(candidate["rates"]), candidate["validation"]
        figure = "not finite" if perplexity is None else f"{perplexity:.1f}"
        return f"{rates}: {figure}" if rates else figure

    return ", ".join(map(tried, record["candidates"]))


def _format_mean(values: Iterable[float]) -> str:
    return f"{statistics.mean(values):.2f}"


def _rates(rates: dict[str, float]) -> str:
    """The distinct rates of a candidate's settings."""
    return " and ".join(f"{rate:g}" for rate in dict.fromkeys(rates.values()))
