"""A damaged file of a run is replaced, or named in one line; no figure is ever made from it."""

import shutil

import pytest
from faults.harm import DAMAGES, emptied, flipped, truncated
from faults.results import assert_same_results
from invoke import assert_refused, content


def files_of(trained):
    """The files of a run and of the cache that it read, by their paths in the working directory."""
    above = trained.workdir.parent
    found = [path for name in ("run", "cache") for path in (above / name).rglob("*")]
    return sorted(path.relative_to(above) for path in found if path.is_file())


def assert_mended_or_named(trained, folder, damaged, damage):
    for name in ("run", "cache"):
        shutil.rmtree(name, ignore_errors=True)
        shutil.copytree(trained.workdir.with_name(name), name)
    damage(damaged)
    before = content(folder)
    outcome = trained.again()
    if outcome.status == 0:
        assert outcome.err == ""
        assert_same_results(folder / "run", trained.workdir)
    else:
        is_config = damaged.name == "config.json"  # with another digit, it is another run's
        assert_refused(outcome, "run" if is_config else damaged.name, status=outcome.status)
        if is_config:
            assert content(folder) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "model.safetensors"])
def test_damaged_file_of_a_run_is_written_again(model, folder, name):
    assert_mended_or_named(model, folder, folder / "run" / name, flipped)
    assert_same_results(folder / "run", model.workdir)


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damaged_file_is_mended_or_named(model, folder, damage, counted):
    for path in files_of(model):
        is_empty = (model.workdir.parent / path).stat().st_size == 0
        if not (is_empty and damage in (truncated, emptied, flipped)):
            assert_mended_or_named(model, folder, folder / path, damage)
            counted("damaged files")
