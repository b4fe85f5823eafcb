"""How TensorFlow starts: it reports a GPU that it can't use, and prints nothing else."""

import subprocess
import sys

import pytest
from scratch import ROOT, Repository, simulate_gpu

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("hidden", [False, True])
def test_a_gpu_that_can_not_be_used_is_told_unless_it_is_hidden(tmp_path, hidden):
    simulate_gpu(tmp_path, "")
    environment = Repository(ROOT).environment()
    environment |= {"PATH": f"{tmp_path}:{environment['PATH']}"} | ({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})
    code = "from regbench import runtime; tf = runtime.start(); print(len(tf.config.list_physical_devices('GPU')))"
    done = subprocess.run((sys.executable, "-c", code), env=environment, capture_output=True, text=True, check=True)
    if done.stdout.strip() != "0":
        pytest.skip("this machine has a GPU that TensorFlow can use")
    lines = done.stderr.splitlines()
    if hidden:
        assert lines == []
    else:
        assert lines[-1] == "TensorFlow can't use the GPU of this machine. The run goes on without it (docs/gpu.md)"
        assert len(lines) > 1 and all(line.startswith("TensorFlow: ") for line in lines[:-1])
        assert "cuda drivers" in done.stderr and "oneDNN" not in done.stderr and "rebuild" not in done.stderr


def test_memory_of_a_shared_gpu_has_a_limit():
    code = (
        "from regbench import runtime; tf = runtime.start(); gpus = tf.config.list_physical_devices('GPU');"
        "print(*(tf.config.get_logical_device_configuration(gpu)[0].memory_limit for gpu in gpus))"
    )
    environment = Repository(ROOT).environment() | {"REGBENCH_GPU_MIB": "2000"}
    done = subprocess.run((sys.executable, "-c", code), env=environment, capture_output=True, text=True, check=True)
    if not done.stdout.strip():
        pytest.skip("this machine has no GPU that TensorFlow can use")
    assert set(done.stdout.split()) == {"2000"}


def test_xla_keeps_the_users_cuda_folder():
    code = "import os; from regbench import runtime; runtime.start(jit=True); print(os.environ['XLA_FLAGS'])"
    flags = "--xla_cpu_enable_fast_math=true --xla_gpu_cuda_data_dir=/opt/cuda"
    environment = Repository(ROOT).environment() | {"XLA_FLAGS": flags}
    done = subprocess.run((sys.executable, "-c", code), env=environment, capture_output=True, text=True, check=True)
    said = done.stdout.split()
    assert "--xla_gpu_cuda_data_dir=/opt/cuda" in said and "--xla_gpu_deterministic_ops=true" in said
    assert "--xla_cpu_enable_fast_math=true" not in said


def test_the_garbage_collector_goes_on_after_the_start():
    code = (
        "import gc; from regbench import runtime; runtime.start(); print(gc.isenabled(), gc.get_freeze_count() > 10**5)"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), env=Repository(ROOT).environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True"]
