"""What the pages promise is true, and their links lead somewhere."""

import json
import pkgutil
import re
import runpy
import subprocess
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from model_examples import put_model
from preloaded import call
from program_flags import list_flags

import zaremba_jax as zj
from experiments.ablations.report_page import language_table, memory_table, report_page
from experiments.reports.statistics import format_mean
from zaremba_jax.config import override
from zaremba_jax.data.corpus import unigram_perplexity
from zaremba_jax.data.toy_corpus import toy_corpus
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.evaluate import perplexity, text_nll
from zaremba_jax.interop.model_folder import save_folder
from zaremba_jax.interop.stablehlo import portable_scoring
from zaremba_jax.model import Model, count_params, init_params
from zaremba_jax.presets import QUICK, from_dict
from zaremba_jax.train import init_train_state

ROOT = Path(__file__).parent.parent
FRONT, PROGRAMS_PAGE, LIBRARY_PAGE = PAGES = (
    "README.md",
    "experiments/README.md",
    "zaremba_jax/README.md",
)
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
ALL = "\n".join(TEXTS.values())
PROGRAMS = (
    "ptb",
    "reproduce",
    "ensemble",
    "sweep",
    "report",
    "generate",
    "score",
    "export",
    "ablation",
    "benchmark",
    "compile_for",
)


@pytest.fixture(scope="module")
def flags_of():
    """The flags of each program."""
    return call(list_flags, PROGRAMS, cwd=ROOT)


def test_every_flag_of_the_programs_is_described(flags_of):
    described = set(re.findall(r"`--(\w+)`", ALL))
    assert described == set().union(*flags_of.values())


def test_every_flag_that_is_mentioned_is_one_of_a_program(flags_of):
    mentioned = set(re.findall(r"(?<![-\w])--(\w+)", ALL))
    # Of TensorBoard, jupytext, XLA, pip.
    of_others = {"logdir", "update", "xla_gpu_deterministic_ops", "index"}
    assert mentioned - of_others <= set().union(*flags_of.values())


def test_every_flag_of_a_command_is_one_of_its_program(flags_of):
    commands = re.findall(r"experiments\.(\w+)((?: [^`|&\n]+)?)", ALL)
    pairs = {(name, flag) for name, rest in commands for flag in re.findall(r" --(\w+)", rest)}
    assert {("benchmark", "config"), ("score", "scores")} < pairs
    assert not [(name, flag) for name, flag in pairs if flag not in flags_of[name]]


def test_front_page_is_read_in_five_minutes():
    lines = TEXTS[FRONT].splitlines()
    assert len(lines) <= 250
    figure = next(number for number, line in enumerate(lines) if line.startswith("!["))
    assert figure < 20


def blocks(page):
    """The page's blocks of Python."""
    return re.findall(r"```py(?:thon)?\n(.*?)```", TEXTS[page], re.DOTALL)


def block(page, telling):
    """The page's block of Python that contains `telling`, compiled."""
    (source,) = (lines for lines in blocks(page) if telling in lines)
    return compile(source, page, "exec")


# The page of each block of Python, and what distinguishes it from the others there.
EXAMPLES = (
    (FRONT, "toy_corpus"),
    (FRONT, "DeepRNN"),
    (FRONT, "Model.load"),
    (LIBRARY_PAGE, "Model.load"),
    (LIBRARY_PAGE, "LinenDeepRNN"),
    (LIBRARY_PAGE, "deserialize"),
)


def test_every_block_of_python_is_run_by_a_test():
    assert len(re.findall("^```py", ALL, re.MULTILINE)) == len(EXAMPLES)
    assert sum(len(blocks(page)) for page in PAGES) == len(EXAMPLES)
    for page, telling in EXAMPLES:
        assert block(page, telling)


def test_library_example_runs_as_written(monkeypatch, capsys):
    tiny = override(QUICK, hidden_size=4, layers=1, epochs=1, batch_size=400, unroll=50)
    monkeypatch.setattr(zj, "QUICK", tiny)
    exec(block(FRONT, "toy_corpus"), {})
    measured, floor = map(float, capsys.readouterr().out.split())
    assert measured > floor > 1


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of the size that the examples expect, and its run in the working directory."""
    words = Vocabulary(("<eos>", "la", "un", "ke", "kosu", "vivik"))
    model = Model(init_params(QUICK.model, 6, key=jax.random.key(0)), QUICK, words)
    monkeypatch.chdir(tmp_path)
    put_model(Path("runs/quick/model.safetensors"), model)
    return model


def test_example_of_a_trained_model_runs_as_written(model, capsys):
    exec(block(FRONT, "Model.load"), {})
    text, measured = capsys.readouterr().out.rsplit(" ", 1)
    ids = model.vocabulary.encode(["<eos>", *model.vocabulary.tokenize(text)])
    assert float(measured) == pytest.approx(perplexity(text_nll(model, ids)))
    exec(block(LIBRARY_PAGE, "Model.load"), {})
    measured, text = capsys.readouterr().out.split("\n", 1)
    ids = np.array([0, 1, 4, 5, 0], np.int32)
    assert float(measured) == pytest.approx(perplexity(text_nll(model, ids)))
    drawn = model.vocabulary.encode(model.vocabulary.tokenize(text.removesuffix("\n")))
    assert len(drawn) in (20, 21)  # an unfinished last line gets its end added


@pytest.mark.parametrize(("page", "module"), [(FRONT, "DeepRNN"), (LIBRARY_PAGE, "LinenDeepRNN")])
def test_example_of_a_module_of_flax_runs_as_written(page, module):
    names = {}
    exec(block(page, module), names)
    assert names["outputs"].shape == (8, 20, 64)


def test_example_of_an_exported_model_runs_as_written(model, capsys):
    Path("scoring.stablehlo").write_bytes(portable_scoring(model))
    save_folder("folder", model)
    exec(block(LIBRARY_PAGE, "deserialize"), {})
    measured = [float(part) for part in capsys.readouterr().out.strip("[]\n").split()]
    for text, value in zip(([0, 1, 4, 5, 0], [0, 2, 3, 4, 0]), measured, strict=True):
        assert perplexity(text_nll(model, np.array(text, np.int32))) == pytest.approx(value, 1e-5)


def test_package_brings_its_types_and_notebooks_what_they_import():
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    kwargs = setup.call_args.kwargs
    for package, names in kwargs["package_data"].items():
        assert all((ROOT / package / name).exists() for name in names)
    assert kwargs["package_data"] == {"zaremba_jax": ["py.typed"]}
    # With no requirement left, pip for another Python has only that to refuse.
    assert all(x.endswith("; python_version >= '3.11'") for x in kwargs["install_requires"])
    assert kwargs["python_requires"] == ">=3.11"
    assert {name.split(".")[0] for name in kwargs["packages"]} == {
        "zaremba_jax",
        "zaremba_programs",
    }
    assert set(kwargs["extras_require"]["plots"]) < set(kwargs["extras_require"]["notebooks"])


def test_ci_runs_the_test_commands_as_written():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"grep '.*' \S*README.md", ci)
    assert len(commands) == 3
    for command in commands:
        # As an argument it could be missing silently; as a variable it ends the script.
        (name,) = re.findall(rf"^(\w+)=\$\({re.escape(command)}\)$", ci, re.MULTILINE)
        assert f'bash -c "${name}"' in ci
        result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert len(result.stdout.splitlines()) == 1


# Single models in the table of perplexities, and what they are compared to there.
PAPER = "paper: {paper_valid_perplexity}, {paper_test_perplexity}"
SINGLES = {  # the folders of each row
    "small-bfloat16-seed0 small-precision=bfloat16-seed1 small-precision=bfloat16-seed2": PAPER,
    "large-seed0": PAPER,
    "medium-seed0": PAPER,
    "medium-precision=bfloat16-seed0": PAPER,
    "medium-second_bias=True-constant_epochs=7-precision=bfloat16-seed0": "paper: 86.2, 82.7",
    "quick-seed0": "exact floor of the source: {floor_perplexity:.1f};"
    " unigram: {unigram_perplexity:.1f}",
}


def test_table_of_perplexities_is_what_was_recorded():
    results = ROOT / "experiments" / "results"
    rows = [[cell.strip(" *") for cell in row.split("|")[3:6]] for row in ALL.splitlines()]
    mixtures = json.loads((results / "small-mixtures.json").read_text())["mixtures"]
    for mixture in mixtures:
        spread = mixture["subsets"] > 1
        means = [
            f"{mixture[f'{split}_perplexity']:.1f}"
            + (f" ± {mixture[f'{split}_spread']:.1f}" if spread else "")
            for split in ("valid", "test")
        ]
        paper = f"{mixture['paper_valid_perplexity']}, {mixture['paper_test_perplexity']}"
        assert [*means, f"paper: {paper}"] in rows
    for names, compared in SINGLES.items():
        summaries = (results / name / "summary.json" for name in names.split())
        records = [json.loads(path.read_text()) for path in summaries]
        figures = (
            format_mean([r[f"{split}_perplexity"] for r in records]) for split in ("valid", "test")
        )
        assert [*figures, compared.format(**records[0])] in rows
    for name in ("awd-small-seed0", "awd-small-longer-seed1"):
        summary = json.loads((results / name / "summary.json").read_text())
        figures = [f"{summary[f'{split}_perplexity']:.1f}" for split in ("valid", "test")]
        assert figures in [row[:2] for row in rows]


def test_built_in_corpus_is_the_one_of_the_record():
    record = json.loads((ROOT / "experiments/results/quick-seed0/summary.json").read_text())
    corpus = toy_corpus()
    params = jax.eval_shape(lambda: init_train_state(QUICK, len(corpus.vocabulary))).params
    assert corpus.floor_perplexity == pytest.approx(record["floor_perplexity"], rel=1e-9)
    assert unigram_perplexity(corpus) == pytest.approx(record["unigram_perplexity"], rel=1e-9)
    assert count_params(params) == record["parameters"] == 490_356
    assert from_dict(record["config"]) == QUICK


def test_table_of_the_cache_and_of_dynamic_evaluation_is_what_was_recorded():
    record = (ROOT / "experiments/results/scoring.txt").read_text(encoding="utf-8")
    command = r"^\$ .*{}(?: (--\w+=\w+))?.*\n.* perplexity ([\d.]+),"
    matches = re.findall(command.format("seed1'"), record, re.MULTILINE)
    rows = [row.split("|") for row in ALL.splitlines()]
    for (flag, valid), (test_flag, test) in zip(matches[::2], matches[1::2], strict=True):
        assert flag == test_flag
        start = f" `{flag}" if flag else " as it was trained"
        (row,) = (row for row in rows if len(row) == 5 and row[1].startswith(start))
        assert [float(cell) for cell in row[2:4]] == [round(float(x), 1) for x in (valid, test)]
    assert len(matches) == 8
    further = re.findall(command.format("awd-small-longer-seed1"), record, re.MULTILINE)
    figures = [f"{float(figure):.1f}" for flag, figure in further if flag == "--dynamic=rms"]
    assert figures in [[cell.strip(" *") for cell in row[3:5]] for row in rows]


def test_tables_of_the_ablation_are_what_was_recorded():
    results = json.loads((ROOT / "experiments/results/ablation/results.json").read_text())
    page = (ROOT / "experiments/results/ablation/report.md").read_text(encoding="utf-8")
    assert report_page(results) == page
    lines = TEXTS[PROGRAMS_PAGE].splitlines()
    assert set(language_table(results).splitlines()) <= set(lines)
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in memory_table(results["memory"]["cells"]).splitlines()
    )
    (shown,) = (line for line in lines if line.startswith("| cell | method; steps ago:"))
    kept = [header.index(name.strip()) for name in shown.strip("|").split("|")]
    for row in rows:
        assert f"| {' | '.join(row[column] for column in kept)} |" in lines


SPEED_TABLES = [
    ("two CPU cores with bfloat16", "-avx512-bfloat16"),
    ("two CPU cores with AVX2, a training step", ""),
    ("one NVIDIA H100", "-h100"),
]


@pytest.mark.parametrize("name", ["small", "medium", "large"])
@pytest.mark.parametrize(("title", "suffix"), SPEED_TABLES)
def test_table_of_speed_is_what_the_benchmark_recorded(title, suffix, name):
    path = ROOT / "experiments" / "results" / f"benchmark-{name}{suffix}.json"
    results = json.loads(path.read_text())
    header, rows = speed_table(title)
    column = header.index(f"`{name}`")
    shown = {f"{builder.strip('`')}:{cells[0]}": cells for _, builder, *cells in rows}
    assert len(shown) == len(rows)
    assert shown.keys() == {record["contender"] for record in results["contenders"]}
    for record in results["contenders"]:
        lower, median, upper = record["ratio"]
        expected = f"{median:.2f} ({lower:.2f}-{upper:.2f})"
        if record is results["contenders"][0]:
            step = record["step_ms"][1]
            digits = ",.0f" if step > 10 else ".2f"
            expected = f"{step:{digits}} ms, {record['of_floor'][1]:.0%} of floor"
        assert shown[record["contender"]][column - 2] == expected


@pytest.mark.parametrize("name", ["small", "medium", "large", "awd"])
def test_evaluation_and_start_are_what_the_benchmark_recorded(name):
    results = json.loads((ROOT / f"experiments/results/benchmark-{name}.json").read_text())
    header, rows = speed_table("two CPU cores with AVX2, float32")
    shown = [row[header.index(f"`{name}`")] for row in rows]
    times = results["evaluation_us"]
    medians = [times.get(f"{reader}:float32", [0, 0])[1] for reader in ("zaremba_jax", "torch")]
    seconds = sum(results["start_up"].values())
    expected = [f"{median:,.0f} µs" if median else "" for median in medians]
    assert shown == [*expected, f"{seconds:.1f} s"]


def speed_table(title):
    """The header and the rows of the table that begins like this."""
    parts = TEXTS[PROGRAMS_PAGE].split("\n\n")
    (table,) = (part for part in parts if part.startswith(f"| {title}"))
    header, _, *rows = ([cell.strip() for cell in line.split("|")] for line in table.splitlines())
    return header, rows


LINKS = sorted(
    {
        (page, *link)
        for page in (*PAGES, "BUILD_NOTES.md", "experiments/results/README.md")
        for link in re.findall(
            r"\]\((?!http)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text(encoding="utf-8")
        )
    }
)


@pytest.mark.parametrize(("source", "path", "anchor"), LINKS)
def test_every_link_leads_to_a_file_and_its_anchor_to_a_heading(source, path, anchor):
    page = (ROOT / source).parent / path if path else ROOT / source
    assert page.exists()
    if anchor:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
        assert [heading.replace(" ", "-") for heading in words].count(anchor) == 1


LIBRARY = [  # its modules by the names that its page gives them
    ".".join(path.relative_to(ROOT / "zaremba_jax").with_suffix("").parts)
    for path in (ROOT / "zaremba_jax").rglob("[!_]*.py")
]


def test_library_page_lists_every_module():
    _, section = TEXTS[LIBRARY_PAGE].split("\n## Modules\n")
    rows = re.findall(r"^\| (`[^|]*) \|", section.split("\n## ")[0], re.MULTILINE)
    assert sorted(re.findall(r"`([\w.]+)`", " ".join(rows))) == sorted(LIBRARY)


def test_programs_page_lists_every_program():
    listed = re.findall(r"^\| `experiments\.(\w+)` \|", TEXTS[PROGRAMS_PAGE], re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (ROOT / "experiments").glob("[!_]*.py"))


def test_every_function_and_file_that_the_pages_name_exists():
    text = ALL + (ROOT / "BUILD_NOTES.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w./]+)(?:\(.*?\))?`", text))
    paths = {n for n in names if re.match("(experiments|tests|zaremba_jax)/.", n)}
    assert len(paths) > 2
    assert not [path for path in paths if not (ROOT / path).exists()]
    rooms = {module.split(".")[0] for module in LIBRARY}
    files = (".json", ".safetensors", ".py")
    dotted = {n for n in names if n.split(".")[0] in rooms and "." in n and not n.endswith(files)}
    assert len(dotted) > 20
    for name in dotted:
        pkgutil.resolve_name(f"zaremba_jax.{name}")  # an ImportError or AttributeError names it
