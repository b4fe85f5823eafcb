"""Results have the same bits, whatever the user's environment variables and keras.json say."""

import shutil
import sys

import pytest
import scratch

pytestmark = pytest.mark.slow
KERAS_JSON = '{{"image_data_format": "{}", "floatx": "{}", "backend": "{}", "epsilon": 1e-3}}'
VARIABLES = {
    "KERAS_BACKEND": "jax",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_DETERMINISTIC_OPS": "0",
    "PYTHONHASHSEED": "7",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "7",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
    "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    "CLUSTER": "nowhere",
    "PYTHON": "/nowhere",
}
SETTINGS = {
    "variables, keras.json": (VARIABLES, ("channels_first", "float16", "tensorflow")),
    "-OO, beside another run, keras.json of another backend": (
        {"PYTHONOPTIMIZE": "2", "PYTHONPYCACHEPREFIX": "pyc", "PYTHONDONTWRITEBYTECODE": "", "REGBENCH_RUNS": "2"},
        ("channels_last", "float32", "jax"),
    ),
}
"""(environment variables, values for keras.json). Each was also tried alone; together they take a tenth of the time."""


def results(repository, python, **environment):
    for stage in ("train", "evaluate"):
        repository.run(python, f"stages/{stage}.py", "l2-0", **environment)
    return {
        path.relative_to(repository.folder): path.read_bytes()
        for path in (repository.folder / "runs").rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def plain(image_folder, tmp_path_factory):
    """(folder of a prepared project, its results in this environment, with the `python` that most tests use)."""
    params = scratch.tiny_params(image_folder, **scratch.TINIEST)
    repository = scratch.copy_project(tmp_path_factory.mktemp("ambient") / "project", params)
    for stage in ("plan", "prepare"):
        repository.run("python", f"stages/{stage}.py")
    expected = results(repository, "python")
    shutil.rmtree(repository.folder / "runs")
    return repository.folder, expected


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_bits(plain, tmp_path, name):
    folder, expected = plain
    repository = scratch.Repository(shutil.copytree(folder, tmp_path / "project"))
    variables, keras_json = SETTINGS[name]
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras/keras.json").write_text(KERAS_JSON.format(*keras_json))
    # `sys.executable` starts a new Python for each stage; the `python` of most tests is a fork (preloaded.py).
    assert results(repository, sys.executable, KERAS_HOME=str(tmp_path / "keras"), **variables) == expected
