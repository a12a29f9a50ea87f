"""The examples in the library's docstrings run as they stand."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITH_EXAMPLES = sorted(
    path for path in (ROOT / "zaremba_jax").rglob("*.py") if ">>> " in path.read_text()
)


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_as_they_stand(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    failed, tried = doctest.testmod(module, extraglobs={"np": importlib.import_module("numpy")})
    assert tried > 0
    assert not failed


def test_the_public_face_names_what_it_offers():
    face = importlib.import_module("zaremba_jax")
    assert set(face.__all__) <= set(dir(face))
    assert all(hasattr(face, name) for name in face.__all__)
    assert {"ComputeConfig", "Encoding", "Sampling"} <= set(face.__all__)  # arguments of the others
    with pytest.raises(AttributeError, match="module 'zaremba_jax' has no attribute 'Nothing'"):
        _ = face.Nothing
    assert 12 <= len(face.__all__) <= 24
