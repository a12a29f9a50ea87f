import dataclasses
import json
import os
import pickle
import zipfile
from unittest import mock

import jax
import numpy as np
import pytest
from safetensors.numpy import load, save

from zaremba_jax.config import override, to_dict
from zaremba_jax.data.units import BYTES
from zaremba_jax.data.vocabulary import Vocabulary
from zaremba_jax.errors import InputError, MissingFileError
from zaremba_jax.interop import model_folder
from zaremba_jax.interop.model_file import ENTRY, load_model, named_arrays, save_model
from zaremba_jax.interop.model_folder import (
    folder_perplexities,
    is_model_folder,
    load_folder,
    save_folder,
)
from zaremba_jax.model import Model, init_params
from zaremba_jax.presets import QUICK, from_dict

WORDS = Vocabulary(("the", "<eos>", "naïve", "<unk>"))
CONFIG = override(QUICK, layers=2, hidden_size=3, seed=5)


def listing(*words, unit="word"):
    return {"words": words, "unit": unit}


def make(**changes):
    config = override(CONFIG, **changes)
    return Model(init_params(config.model, len(WORDS), key=jax.random.key(0)), config, WORDS)


def rewrite(path, changed_arrays=None, **record):
    """Writes a model file with other arrays or another description."""
    save_model(path, make())
    arrays = load(path.read_bytes()) | (changed_arrays or {})
    arrays = {name: array for name, array in arrays.items() if array is not None}
    description = {
        "version": 1,
        "config": to_dict(CONFIG),
        "vocabulary": {"words": WORDS.words, "unit": "word"},
    }
    path.write_bytes(save(arrays, {ENTRY: json.dumps(description | record)}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"cell": "gru"}, {"cell": "tanh", "tie_weights": True}, {"embedding_size": 5}],
    ids=str,
)
def test_load_inverts_save_to_the_bit(tmp_path, changes):
    model = make(**changes)
    save_model(tmp_path / "model.safetensors", model)
    read = load_model(tmp_path / "model.safetensors")
    assert (read.config, read.vocabulary) == (model.config, model.vocabulary)
    assert jax.tree.structure(read.params) == jax.tree.structure(model.params)
    jax.tree.map(np.testing.assert_array_equal, read.params, model.params)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("vocabulary", [Vocabulary(BYTES, "byte"), Vocabulary(("\n", "é"), "char")])
def test_unit_of_the_vocabulary_is_kept(tmp_path, vocabulary):
    params = init_params(CONFIG.model, len(vocabulary), key=jax.random.key(0))
    model = Model(params, CONFIG, vocabulary)
    save_model(tmp_path / "model", model)
    assert load_model(tmp_path / "model").vocabulary == vocabulary
    save_folder(tmp_path / "folder", model)
    assert load_folder(tmp_path / "folder").vocabulary == vocabulary


def test_same_model_is_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        save_model(tmp_path / name, make())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_any_reader_of_safetensors_finds_arrays_by_clear_names(tmp_path):
    save_model(tmp_path / "model", make())
    arrays = load((tmp_path / "model").read_bytes())
    assert set(arrays) == {
        "embedding",
        *(f"layers.{n}.{of}" for n in (0, 1) for of in ("input_weights", "recurrent_weights")),
        *(f"layers.{n}.bias" for n in (0, 1)),
        "softmax.weights",
        "softmax.bias",
    }
    assert arrays["layers.1.recurrent_weights"].shape == (3, 12)


def test_array_that_lies_otherwise_in_memory_is_written_by_its_values(tmp_path):
    model = make()
    turned = jax.tree.map(lambda x: np.asfortranarray(np.asarray(x)), model.params)
    save_model(tmp_path / "model", Model(turned, model.config, WORDS))
    read = load_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, read.params, model.params)


def test_file_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        save_model(tmp_path / "model", make())
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o644


def test_interrupted_save_leaves_the_file_before_it(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save_model(path, make())
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_model(path, make(seed=6))
    assert path.read_bytes() == before


FOREIGN = {
    "empty": b"",
    "text": b"the quick brown fox jumps over the lazy dog",
    "huge header": b"\xff" * 64,
    "no model": save({"weight": np.zeros(3, np.float32)}),
    "another's metadata": save({"weight": np.zeros(3, np.float32)}, {"format": "pt"}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: (is not a whole|holds no model)"):
        load_model(path)


@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_code_in_a_file_is_never_run(tmp_path, form):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").mkdir, ())

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    if form == "zip":  # as torch.save writes it
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("missing", [1, 100, 10**9])
def test_file_that_is_cut_off_is_refused(tmp_path, missing):
    path = tmp_path / "model.safetensors"
    save_model(path, make())
    content = path.read_bytes()
    path.write_bytes(content[: max(len(content) - missing, 0)])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(path)


@pytest.mark.parametrize("form", ["file", "folder"])
def test_flipped_bit_is_noticed_or_does_no_harm(tmp_path, form):
    path, model = tmp_path / "model.safetensors", make()
    save_folder(tmp_path, model)
    content, harmless = path.read_bytes(), 0
    for position in range(0, len(content), 29):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = load_model(path) if form == "file" else load_folder(tmp_path)
        except InputError:
            continue
        harmless += 1
        jax.tree.map(np.testing.assert_array_equal, read.params, model.params)
        assert (read.config, read.vocabulary) == (model.config, model.vocabulary)
    assert harmless <= len(content) // 29 // 20


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    rewrite(tmp_path / "model", {"softmax.bias": np.array([0, np.nan, 0, 0], np.float32)})
    with pytest.raises(InputError, match=r"softmax\.bias has numbers that are not finite; take"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("write", [save_model, save_folder])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, write):
    model = make()
    infinite = model.params.embedding.at[1, 2].set(np.inf)
    broken = dataclasses.replace(model.params, embedding=infinite)
    with pytest.raises(InputError, match="embedding has numbers that are not finite; take a model"):
        write(tmp_path / "model", dataclasses.replace(model, params=broken))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["layers", "hidden_size", "embedding_size", "output_size"])
def test_description_of_a_model_beyond_any_memory_is_refused_at_once(tmp_path, name):
    rewrite(tmp_path / "model", config=to_dict(CONFIG) | {name: 10**9})
    with pytest.raises(InputError, match=rf"model: its description .*{name}=1000000000: must be"):
        load_model(tmp_path / "model")


def test_numbers_of_a_type_that_numpy_lacks_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    header = b'{"x":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(ValueError, match="save its numbers as float32"):
        load_model(path)


def test_missing_file_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent: no such file; give the path"):
        load_model(tmp_path / "absent")


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors"])
def test_missing_file_of_a_folder_is_said(folder, name):
    (folder / name).unlink()
    with pytest.raises(MissingFileError, match=rf"{name}: no such file; give the path of"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"version": 2}, "format version 2, but only 1 is supported"),
        ({"config": to_dict(CONFIG) | {"name": "huge"}}, "name='huge': must be one of quick"),
        ({"config": to_dict(CONFIG) | {"layers": "2"}}, "layers='2': must be of type int"),
        ({"config": to_dict(CONFIG) | {"width": 2}}, "width: no such setting"),
        ({"config": [[[0]]]}, "its description cannot be read"),
        ({"config": 3}, "its description cannot be read"),
        ({"config": []}, "name=None: must be one of quick"),
        ({"vocabulary": {"words": "the", "unit": "word"}}, "the vocabulary is not a list of words"),
        ({"vocabulary": listing("a", "a")}, r"the vocabulary repeats a \(2 times\)"),
        ({"vocabulary": listing("a", unit="verse")}, "unit='verse': must be one of word"),
        ({"vocabulary": {}}, "'words'"),
    ],
    ids=str,
)
def test_description_that_cannot_be_read_is_refused(tmp_path, record, reason):
    rewrite(tmp_path / "model", **record)
    with pytest.raises(ValueError, match=reason) as error:
        load_model(tmp_path / "model")
    assert "export the model again" in str(error.value)


@pytest.mark.parametrize(
    ("arrays", "record", "reason"),
    [
        ({"softmax.bias": None}, {}, r"softmax\.bias \(none there, float32\[4\] expected\)"),
        ({"more": np.ones(2, np.int32)}, {}, r"more \(int32\[2\] there, none expected\)"),
        ({"softmax.bias": np.ones(4, np.float16)}, {}, r"softmax\.bias \(float16\[4\] there"),
        (
            {},
            {"vocabulary": listing("a")},
            r"and 1 words: embedding \(float32\[4, 3\] there",
        ),
        ({}, {"config": to_dict(CONFIG) | {"layers": 1}}, r"layers\.1\.bias \(float32\[12\] there"),
    ],
    ids=["missing", "too many", "type", "vocabulary", "configuration"],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path, arrays, record, reason):
    rewrite(tmp_path / "model", arrays, **record)
    with pytest.raises(ValueError, match=reason):
        load_model(tmp_path / "model")


def test_of_many_arrays_that_do_not_fit_some_are_named(tmp_path):
    rewrite(tmp_path / "model", config=to_dict(CONFIG) | {"layers": 100})
    with pytest.raises(InputError, match=" and 284 more; save the model") as refused:
        load_model(tmp_path / "model")
    assert str(refused.value).count(" there, ") == 10


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 4}, {"second_bias": True}, {"cell": "gru"}], ids=str
)
def test_model_that_could_not_be_read_again_is_not_written(tmp_path, changes):
    model = dataclasses.replace(make(), config=override(CONFIG, **changes))
    with pytest.raises(ValueError, match="model: its arrays do not match its configuration"):
        save_model(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [save_model, save_folder])
def test_model_with_a_word_twice_is_not_written(tmp_path, write):
    model = dataclasses.replace(make(), vocabulary=Vocabulary(("the", "<eos>", "the", "<unk>")))
    with pytest.raises(InputError, match=r"repeats the \(2 times\)\); give the model another"):
        write(tmp_path / "model", model)
    assert not list(tmp_path.iterdir())


def test_single_and_double_precision_are_read_whatever_jax_is_set_to(tmp_path):
    for wide in (True, False):
        with jax.enable_x64(wide):
            save_model(tmp_path / f"{wide}", make())
    for wide in (True, False):
        with jax.enable_x64(wide):
            single, double = (load_model(tmp_path / f"{was_wide}") for was_wide in (False, True))
        assert {x.dtype.name for x in jax.tree.leaves(single.params)} == {"float32"}
        expected = "float64" if wide else "float32"
        assert {x.dtype.name for x in jax.tree.leaves(double.params)} == {expected}


def test_configuration_goes_to_a_dictionary_and_back():
    assert from_dict(to_dict(CONFIG)) == CONFIG
    older = to_dict(CONFIG)
    del older["zoneout_cell"]
    assert from_dict(older) == CONFIG


def test_model_of_before_custom_vjp_was_called_so_is_read(tmp_path):
    rewrite(tmp_path / "older", config=to_dict(CONFIG) | {"kernel": "xla"})
    assert load_model(tmp_path / "older").config == CONFIG
    save_folder(tmp_path / "folder", make())
    path = tmp_path / "folder" / "config.json"
    path.write_text(path.read_text().replace("custom_vjp", "xla"))
    assert load_folder(path.parent).config == CONFIG


def test_names_are_those_of_the_records():
    model = make()
    np.testing.assert_array_equal(
        named_arrays(model.params)["layers.1.bias"], model.params.layers[1].bias
    )


@pytest.fixture
def folder(tmp_path):
    """A folder in the style of Hugging Face."""
    save_folder(tmp_path / "folder", make())
    return tmp_path / "folder"


def test_load_folder_inverts_save_folder(folder):
    read, model = load_folder(folder), make()
    assert (read.config, read.vocabulary) == (model.config, model.vocabulary)
    jax.tree.map(np.testing.assert_array_equal, read.params, model.params)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "vocab.json",
    ]
    assert json.loads((folder / "vocab.json").read_text())["naïve"] == 2
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("settings") == to_dict(CONFIG)
    assert len(config.pop("arrays_sha256")) == 64
    assert config == {
        "model_type": ENTRY,
        "format_version": 1,
        "vocab_size": 4,
        "hidden_size": 3,
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
        "unit": "word",
        "perplexities": {},
    }


def save_folder_cut_off(folder, model):
    """Stops before the last file."""

    def stop(path, content):
        if path.name == "model.safetensors":
            raise KeyboardInterrupt
        write_whole(path, content)

    write_whole = model_folder.write_whole
    with mock.patch.object(model_folder, "write_whole", stop), pytest.raises(KeyboardInterrupt):
        save_folder(folder, model)


def test_folder_whose_writing_was_cut_off_is_an_export_and_is_written_again(tmp_path):
    save_folder_cut_off(tmp_path / "folder", make())
    assert is_model_folder(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        load_folder(tmp_path / "folder")
    save_folder(tmp_path / "folder", make())
    assert load_folder(tmp_path / "folder").config == CONFIG


def test_folder_with_the_arrays_of_an_earlier_export_is_refused(folder):
    params = jax.tree.map(lambda x: x + 1, make().params)
    other = dataclasses.replace(make(), params=params)
    save_folder_cut_off(folder, other)
    with pytest.raises(InputError, match=r"has other weights than config\.json was"):
        load_folder(folder)
    save_folder(folder, other)
    jax.tree.map(np.testing.assert_array_equal, load_folder(folder).params, params)


def test_folder_of_before_there_was_a_hash_of_its_arrays_is_read(folder):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    del record["arrays_sha256"]
    path.write_text(json.dumps(record))
    assert load_folder(folder).config == CONFIG


def test_model_that_could_not_be_read_again_leaves_an_earlier_export_as_it_was(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = dataclasses.replace(make(), config=override(CONFIG, hidden_size=4))
    with pytest.raises(InputError, match="its arrays do not match its configuration"):
        save_folder(folder, model)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_description_that_is_nested_deeply_is_refused(tmp_path):
    (tmp_path / "model").write_bytes(save({}, {ENTRY: "[" * 100_000}))
    with pytest.raises(InputError, match=r"model: its description cannot be read .*too deeply"):
        load_model(tmp_path / "model")


def test_folder_whose_weights_lost_their_metadata_is_read(folder):
    path = folder / "model.safetensors"
    path.write_bytes(save(load(path.read_bytes()), {"format": "pt"}))
    assert load_folder(folder).config == CONFIG


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", '{"model_type": "gpt2"}', "model_type=gpt2: is not zaremba_jax"),
        ("config.json", "{", "cannot be read as a model folder"),
        (
            "config.json",
            '{"model_type": "zaremba_jax", "format_version": 2}',
            "format_version=2: must be 1",
        ),
        ("config.json", "[]", "it is no JSON object"),
        ("vocab.json", '{"a": 1, "b": 2}', r"its ids are not 0 to 1, each once"),
        ("vocab.json", "3", "the vocabulary is not a list of words"),
        ("config.json", "[" * 100_000, "nested too deeply"),
        ("vocab.json", '{"a":' * 100_000, "nested too deeply"),
        ("vocab.json", '["a", "b"]', r"and 2 words: embedding \(float32\[4, 3\] there"),
        ("model.safetensors", "{}", "is not a whole safetensors file"),
    ],
    ids=lambda value: value[:40],
)
def test_folder_whose_files_do_not_go_together_is_refused(folder, name, content, reason):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=reason):
        load_folder(folder)


def test_folder_with_the_words_of_another_model_is_refused(folder):
    (folder / "vocab.json").write_text(json.dumps(["a", "<eos>", "b", "<unk>"]))
    with pytest.raises(InputError, match="its files are not of one model; export the model again"):
        load_folder(folder)


def test_folder_of_an_unknown_unit_is_refused_by_name(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unit": "verse"}))
    with pytest.raises(InputError, match="unit='verse': must be one of word, char, byte"):
        load_folder(folder)


def test_folder_may_say_that_its_model_is_computed_otherwise(folder):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    record["settings"]["precision"] = "bfloat16"
    path.write_text(json.dumps(record))
    assert load_folder(folder).config == override(CONFIG, precision="bfloat16")


def test_perplexities_of_another_programs_folder_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="model_type=None: is not zaremba_jax"):
        folder_perplexities(tmp_path)
    assert not is_model_folder(tmp_path)


@pytest.mark.parametrize("perplexities", [None, [], {"test": None}])
def test_perplexities_that_are_no_numbers_are_refused(folder, perplexities):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"perplexities": perplexities}))
    with pytest.raises(InputError, match="its perplexities are no numbers"):
        folder_perplexities(folder)
