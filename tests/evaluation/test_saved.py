"""A trained model's file: which programs can load it, its metadata, and messages about files that are not models."""

import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from scratch import CLASSES, ROOT

import regbench
from regbench.data import arrays
from regbench.errors import UserError
from regbench.evaluation import saved
from regbench.networks import layers, small_cnn
from regbench.training import save

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import regbench
about = regbench.metadata(sys.argv[1])
assert "keras" not in sys.modules and "tensorflow" not in sys.modules

for name in [name for name in sys.modules if name.startswith("regbench")]:
    del sys.modules[name]
sys.modules["regbench"] = None  # as where it is not installed: an import of it fails
import keras, numpy as np
images = np.load(sys.argv[2])
model = keras.saving.load_model(sys.argv[1])
assert not model.compiled and model.losses == []
logits = model.predict(images, verbose=0)
assert logits.shape == (len(images), len(about["classes"]))

del sys.modules["regbench"]
import regbench
np.testing.assert_array_equal(regbench.load(sys.argv[1]).predict(images, verbose=0), logits)
assert not [name for name in sys.modules if name.startswith(("regbench.networks", "regbench.training"))]
np.save(sys.argv[3], logits)
"""


@pytest.fixture
def model(trained):
    return trained / "runs/l2-0/model.keras"


def test_loads_without_regbench_and_where_only_regbench_is_imported(trained, model, tmp_path):
    images = arrays.load("test", trained / "prepared").images
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", PROGRAM, model, "images.npy", "logits.npy"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    logits = regbench.load(model)(np.array(images)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=0, atol=1e-4 * np.abs(logits).max())


def test_what_a_file_says_of_its_model(model):
    assert regbench.metadata(model) == {
        "version": 1,
        "input": "uint8 [N, 32, 32, 3], 0 to 255",
        "output": "logits [N, 10]",
        "image_shape": [32, 32, 3],
        "classes": list(CLASSES),
        "seed": 0,
        "regularizer": [{"kind": "l2", "strength": 0.001, "scope": "all"}],
        "image_size": 32,
    }
    loaded = regbench.load(str(model))
    assert (loaded.input_shape, loaded.inputs[0].dtype) == ((None, 32, 32, 3), "uint8")
    assert (loaded.output_shape, loaded.outputs[0].dtype) == ((None, 10), "float32")


def test_the_same_model_gives_the_same_bytes(tmp_path):
    written = []
    for name in ("one", "other"):
        keras.utils.set_random_seed(0)
        network = small_cnn.build((16, 16, 3), 4, width=0.25)
        twice = layers.PointwiseConv2D(4, kernel_initializer=keras.initializers.HeNormal(0), name="twice")
        network = keras.Model(network.input, twice(twice(network.get_layer("conv1_relu").output)), name="network")
        save.save(network, tmp_path / f"{name}.keras", {"classes": ["é"]})
        written.append((tmp_path / f"{name}.keras").read_bytes())
    assert written[0] == written[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.keras", "other.keras"]
    assert saved.metadata(tmp_path / "one.keras") == {"classes": ["é"]}


def without(name):
    def remove(path):
        with zipfile.ZipFile(path) as archive:
            content = {member: archive.read(member) for member in archive.namelist() if member != name}
        with zipfile.ZipFile(path, "w") as archive:
            for member, text in content.items():
                archive.writestr(member, text)

    return remove


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "there is no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "it is damaged, or not a .keras file"),
        (lambda path: path.write_bytes(b""), "it is damaged, or not a .keras file"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b'"Conv2D"', b'"Conv3D"')), "it is damaged: config"),
        (lambda path: without("config.json")(path), "it is not a .keras file"),
        (lambda path: without("model.weights.h5")(path), "ValueError: "),
    ],
    ids=["missing", "cut", "empty", "changed", "no config", "no weights"],
)
def test_what_is_no_model_is_said(model, tmp_path, damage, says):
    path = tmp_path / "model.keras"
    path.write_bytes(model.read_bytes())
    damage(path)
    with pytest.raises(UserError, match=rf"model\.keras can't be loaded \({says}"):
        regbench.load(path)


def test_a_model_of_unknown_layers_or_of_another_program(tmp_path):
    inputs = keras.Input((4, 4, 3))
    keras.Model(inputs, keras.layers.Conv2D(2, 1)(inputs)).save(tmp_path / "keras.keras")
    assert regbench.load(tmp_path / "keras.keras").count_params() == 8
    with pytest.raises(UserError, match=r"keras\.keras does not say what its classes are; .* Train again"):
        regbench.metadata(tmp_path / "keras.keras")
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)).save(tmp_path / "code.keras")
    with pytest.raises(UserError, match=r"code\.keras can't be loaded \(.*Lambda"):
        regbench.load(tmp_path / "code.keras")
    (tmp_path / "model.h5").write_bytes((tmp_path / "keras.keras").read_bytes())
    with pytest.raises(UserError, match=r"model\.h5 can't be loaded \(its name should end in \.keras"):
        regbench.load(tmp_path / "model.h5")


def test_no_damage_gives_another_model(model, tmp_path):
    """Every byte of the content is covered by a checksum; the archive's own fields may differ."""
    path, content = tmp_path / "model.keras", model.read_bytes()
    expected, refused = saved.metadata(model), 0
    weights = saved.load(model).get_weights()
    for place in np.random.default_rng(0).choice(len(content), 40, replace=False).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            assert saved.metadata(path) == expected
            for ours, others in zip(weights, saved.load(path).get_weights(), strict=True):
                np.testing.assert_array_equal(ours, others)
        except UserError:
            refused += 1
    assert refused >= 35


def test_a_model_is_found_by_its_run_its_folder_or_its_path(trained, model, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    for name in ("l2-0", "runs/l2-0", "runs/l2-0/model.keras"):
        assert saved.find(name).resolve() == model.resolve()
    with pytest.raises(UserError, match=r"no model of a run l1-0 here; runs/ has l2-0. `dvc pull` .* `make repro`"):
        saved.find("l1-0")
    monkeypatch.chdir(tmp_path)
    assert saved.find(str(model)) == model
    with pytest.raises(UserError, match="runs/ has no models"):
        saved.find("l2-0")
