"""Each kind in the catalogue: strength 0 is no regularizer; the same bits on one thread and two, killed or not.

Two processes train each kind once. The first uses two threads. The second uses one thread; each training in it is
killed in the middle of an epoch and resumed. Both must write the same files.
"""

import json
import re

import pytest
import yaml
from scratch import ROOT, TINIEST, Repository, tiny_params

from regbench import catalogue, params, plan
from regbench.data import prepare

pytestmark = pytest.mark.slow

SCRIPT = """
import hashlib, json, sys, zipfile
from pathlib import Path
threads, killed = int(sys.argv[1]), sys.argv[2] == "killed"
from regbench import plan, runtime
runtime.start(threads=threads)
import keras
import residual  # a network that is found by its name
from regbench.training import checkpoint, fit, history

class KilledError(Exception): pass
save, history.SAVE_SECONDS = checkpoint.Checkpoint.save, 0  # after each step

def save_and_die(self, rows, step=0):
    save(self, rows, step)
    if step == 2:
        raise KilledError

found = {}
for path in sorted(Path("plans").glob("*/train.json")):
    chosen = plan.read(path)
    if killed and chosen["name"].startswith("zero"):
        continue
    chosen["model"] = chosen["model"].model_copy(update={"network": "residual"})
    out = Path(sys.argv[2]) / chosen["run"]
    for saving in (save_and_die, save) if killed else (save,):
        checkpoint.Checkpoint.save = saving
        keras.backend.clear_session()
        try:
            fit.train(chosen, out=out)
        except KilledError:
            pass
    content = [(out / "model.keras").read_bytes(), (out / "history.csv").read_bytes()]
    with zipfile.ZipFile(out / "model.keras") as model:
        content.append(model.read("model.weights.h5"))
    found[chosen["name"]] = [hashlib.sha256(part).hexdigest() for part in content]
print("found", json.dumps(found))
"""
"""Trains the plans in plans/ and prints {name: [SHA-256 of model.keras, of history.csv, of the weights alone]}. If
trainings are killed, it leaves out those at strength 0."""


def usual_strength(kind):
    """The lowest strength that the kind's docstring calls usual."""
    return float(re.search(r"Usual strengths: (?:as \w+, )?([\d.e-]+)", kind.docstring)[1])


def zeros():
    """All kinds at strength 0, {name: line}, in few lines: kinds that can be combined share a line."""
    lines = []
    for kind in catalogue.kinds().values():
        for line in lines:
            if not any(other in kind.excludes or kind.name in catalogue.kinds()[other].excludes for other in line):
                line[kind.name] = 0
                break
        else:
            lines.append({kind.name: 0})
    return {f"zero{index}": line for index, line in enumerate(lines)}


@pytest.fixture(scope="module")
def folder(image_folder, tmp_path_factory):
    """A folder with the prepared images, the plans and `SCRIPT`."""
    folder = tmp_path_factory.mktemp("kinds")
    settings = tiny_params(
        image_folder,
        **TINIEST,
        **{"train.epochs": 2, "train.batch_size": 16, "train.momentum": 0.9, "train.batch_norm_images": 0},
    )
    settings["reg"] = {"none": 0} | zeros() | {name: usual_strength(kind) for name, kind in catalogue.kinds().items()}
    loaded = params.parse(yaml.safe_dump(settings))
    prepare.prepare(loaded.data, folder / "prepared")
    plan.write(loaded, folder / "plans")
    (folder / "kinds.py").write_text(SCRIPT)
    return folder


def trained(folder, threads, how):
    """What `SCRIPT` prints in a process of its own; `how` is "whole" or "killed"."""
    (folder / how).mkdir()  # checkpoints lie in the working directory
    for shared in ("prepared", "plans"):
        (folder / how / shared).symlink_to(folder / shared)
    repository = Repository(folder / how)
    output = repository.run("python", "../kinds.py", str(threads), how, PYTHONPATH=f"{ROOT / 'src'}:{ROOT / 'tests'}")
    return json.loads(re.search(r"^found (.*)$", output, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def whole(folder):
    return trained(folder, 2, "whole")


@pytest.fixture(scope="module")
def killed(folder):
    return trained(folder, 1, "killed")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["none", *catalogue.kinds()])
def test_the_same_bits_on_one_thread_and_two_killed_or_not(whole, killed, kind):
    assert whole[kind] == killed[kind]


@pytest.mark.parametrize("kind", catalogue.kinds())
def test_strength_zero_is_no_regularizer(whole, kind):
    line = next(name for name, line in zeros().items() if kind in line)
    assert whole[line][1:] == whole["none"][1:]


@pytest.mark.parametrize("kind", sorted(set(catalogue.kinds()) - {"early_stopping"}))
def test_the_usual_strength_does_something(whole, kind):
    assert whole[kind][2] != whole["none"][2]
