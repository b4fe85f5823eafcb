"""Every command of the README and of docs/, in a block or a sentence, is run: here, elsewhere, or it says why not."""

import re
import shlex
import shutil
import time

import pytest
from conftest import ROOT, TINIEST, Repository, copy_project, tiny_params

from regbench import params

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md")))

ELSEWHERE = {
    "make test": "this is it",
    "make repro": "test_pipeline.test_whole_comparison_side_by_side, and CI's clean clone",
    "make check": "test_review",
    "make pr-report BASE=origin/main": "test_review.test_clone_without_a_cache",
    "dvc repro": "test_pipeline",
    "dvc exp run -S reg.l2=0.0005": "test_pipeline.test_one_strength_trains_one_regularizer",
    "dvc metrics diff main --md": "test_pipeline.test_a_clone_without_cache_compares_commits",
    "dvc plots diff main -o dvc_plots": "test_pipeline.test_a_clone_without_cache_compares_commits",
    "dvc exp run -S '+reg.elastic={l1: 1e-5, l2: 1e-4}'": "test_pipeline.test_one_more_regularizer_and_one_less",
    "dvc exp run -S '~reg.l1'": "test_pipeline.test_one_more_regularizer_and_one_less",
    "dvc exp run -S +reg.group_lasso=0.0001": "test_pipeline.test_one_more_regularizer_and_one_less, another kind",
    "dvc push --run-cache": "test_job_arrays.test_a_slurm_array_trains_and_the_head_only_reports",
    "dvc repro -s": "test_pipeline.test_whole_comparison_side_by_side",
    "make lint": "CI",
    "make cluster": "CI",
    "make pr-report": "test_review",
    "make pr-report BASE=HEAD": "test_review.test_strength_changed",
    "make repro JOBS=1": "test_pipeline.test_whole_comparison_side_by_side, with two",
    "make repro JOBS=n": "test_pipeline.test_whole_comparison_side_by_side",
    "make repro CLUSTER=auto": "test_cluster, with an address",
    "make repro CLUSTER=…": "test_cluster",
    "python -m regbench.lock": "test_damage.test_dvcs_own_files_cut_off",
    "python benchmarks/cluster_killed.py": "test_cluster, at moments of its own",
}
NOT_RUN = {
    "dvc exp run -S train.batch_norm_images=0": "test_training trains so",
    "git fetch --unshallow": "Git's own",
    "git fetch origin": "Git's own",
    "git rm -r --cached": "Git's own",
    "make bench": "half an hour on an idle machine",
    "make lock": "needs uv and the net",
    "make repro PYTHON=/path/to/python3.12": "one Python is at hand in a test",
    "python benchmarks/bench.py agreement": "part of make bench",
    "python benchmarks/bench.py larger_than_memory": "part of make bench",
    "python benchmarks/cluster_killed.py --seeds 1 --pause 40 --seed 4": "as above",
    "python benchmarks/dvc_at_scale.py": "ten minutes",
    "cp docs/study/params.yaml params.yaml": "an hour of training with the next; its params are checked below",
    "dvc exp run -S 'train.seeds=[0,1,2]'": "test_pipeline.test_one_more_seed_trains_that_seed_only, with two",
    'git commit -am "with batch normalization"': "between two experiments",
    "dvc exp run -S model.batch_norm=false -S '~reg.l1'": "test_mobilenet builds it; knobs go as in test_pipeline",
    "pip install -e .": "make setup installs the same packages at pinned versions",
    "pip install -e '.[gpu]'": "two GB of CUDA packages",
    "dvc exp run -S data.dataset=fashion_mnist": "needs its host; test_sources builds TFDS datasets of its own",
    "dvc exp run -S data.dataset=./photos -S data.train_images=null -S data.validation_images=200": "as below, smaller",
    "dvc exp run -S data.dataset=./photos -S data.train_images=null -S data.validation_images=200 "
    "-S data.image_size=96": "test_dataset prepares folders",
    "dvc exp run -S data.image_size=224 -S data.train_images=null -S data.validation_images=test -S train.epochs=10 "
    "-S train.learning_rate=0.1 -S train.schedule=constant -S train.warmup_epochs=0 -S train.cooldown_epochs=0 "
    "-S train.flip=false -S train.batch_norm_images=0": "wants a GPU; the params are checked below",
}


PROGRAMS = ("dvc ", "make ", "pip ", "git ", "python ", "cp ")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page):
    """The commands in a page's blocks of code, comments and continued lines put right, and in its sentences."""
    text = (ROOT / page).read_text()
    lines = [
        re.sub(r"\s+#.*", "", line)
        for language, block in BLOCK.findall(text)
        if not language
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in lines + re.findall(r"`([^`]+)`", BLOCK.sub("", text)):
        command = " ".join(line.split())
        if command.startswith(PROGRAMS):
            yield command


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    """The project at a tiny size, its results committed on main, with a second commit that changes a strength."""
    chosen = tiny_params(image_folder, **TINIEST)
    chosen["reg"] = {"none": 0, "l2": 0.01}
    repository = copy_project(tmp_path_factory.mktemp("docs") / "project", chosen)
    repository.dvc("repro", "-q")
    repository.commit("results")
    return repository


def run(repository, command, **options):
    return repository.run(*shlex.split(command), **options)


def test_the_articles_setting_is_allowed(repository):
    command = next(command for command in NOT_RUN if "image_size=224" in command)
    output = run(repository, command.replace("exp run", "exp run --queue"))
    assert "Queued experiment" in output
    run(repository, "dvc queue remove --queued")


def test_the_studys_params_are_current():
    assert params.load(ROOT / "docs/study/params.yaml").train.seeds == (0, 1, 2)


def test_experiments_are_queued_shown_compared_and_applied(repository):
    done = set()

    def step(command):
        done.add(command)
        return run(repository, command)

    assert step("dvc exp run --queue -S 'reg.l2=1e-5,1e-4,1e-3'").count("Queued experiment") == 3
    step("dvc queue start -j 2")
    for _ in range(120):
        status = step("dvc queue status")
        if not re.search(r"Queued|Running", status):
            break
        time.sleep(1)
    assert status.count("Success") == 3, status
    page = (ROOT / "docs/pull-requests.md").read_text()
    table = step(next(command for command in commands("docs/pull-requests.md") if "exp show" in command))
    assert table.count("Success") == 3 and "reg.l2" in table and "test_accuracy" in table
    names = re.findall(r"\[([\w-]+)\]", run(repository, "dvc exp list"))
    assert "`dvc exp diff randy-hunk stiff-grig --md`" in page and "`dvc exp apply randy-hunk`" in page
    assert "l2.reg_loss" in run(repository, f"dvc exp diff {names[0]} {names[1]} --md")
    run(repository, f"dvc exp apply {names[0]}")
    repository.commit("applied")
    # Two at a time, in copies of their own: the numbers are those of a run by itself.
    queued = repository.read("runs/l2-0/evaluation.json")
    run(repository, "dvc repro -q -f -s train@l2-0 evaluate@l2-0")
    assert repository.read("runs/l2-0/evaluation.json") == queued
    run(repository, "git checkout -q dvc.lock")
    assert step("dvc params diff main~1").count("reg.l2") == 1
    assert "train@l2-0" in step("dvc dag")
    listed = {command for command in commands("docs/pull-requests.md") if "queue" in command or "exp show -" in command}
    assert listed <= done


def test_a_remote_instead_of_training(repository, tmp_path):
    run(repository, f"dvc remote add --default store {shlex.quote(str(tmp_path / 'remote'))}")
    repository.commit("a remote")
    assert "pushed" in run(repository, "dvc push")
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    assert "fetched" in run(clone, "dvc pull")
    assert "up to date" in run(clone, "dvc repro")


RUN_HERE = (
    "dvc exp run --queue ",
    "dvc queue ",
    "dvc exp apply ",
    "dvc exp diff ",
    "dvc exp show",
    "dvc params diff main",
    "dvc remote add ",
    "dvc push",
    "dvc pull",
    "dvc metrics diff",
    "dvc plots",
    "dvc checkout",
    "dvc status",
    "dvc repro -f ",
    "dvc repro evaluate@",
    "make help",
    "dvc exp run -S '+reg.head_l2=",
)


def test_a_scope_and_the_diff_of_an_experiment(repository):
    run(repository, "dvc exp run -S '+reg.head_l2={l2: 1e-3, scope: head}'")
    assert "head_l2.test_accuracy" in run(repository, "dvc metrics diff --md")
    run(repository, "dvc plots diff -o dvc_plots")
    assert (repository.folder / "dvc_plots/index.html").exists()
    run(repository, "git checkout -q .")
    run(repository, "dvc checkout -q")
    shutil.rmtree(repository.folder / "runs/head_l2-0")


def test_commands_that_repair(repository):
    for command in (
        "dvc repro -f prepare",
        "dvc repro evaluate@l2-0",
        "dvc repro -f -s train@l2-0",
        "dvc repro -f -s evaluate@l2-0",
    ):
        run(repository, command)
    # All the same again, but the seconds in history.csv and report.md.
    run(repository, "dvc repro -q")
    assert run(repository, "git diff --stat -- metrics plots") == ""
    (repository.folder / "runs/l2-0/layers.csv").unlink()
    assert "layers.csv" in run(repository, "dvc status")
    run(repository, "dvc checkout")
    assert "up to date" in run(repository, "dvc status")
    assert "dvc_plots" in run(repository, "dvc plots show")
    assert "pr-report" in run(repository, "make help")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_accounted_for(page):
    unknown = [
        command
        for command in commands(page)
        if command not in ELSEWHERE and command not in NOT_RUN and not command.startswith(RUN_HERE)
    ]
    assert not unknown


@pytest.mark.parametrize("where", sorted({words.split(",")[0] for words in ELSEWHERE.values()} - {"this is it", "CI"}))
def test_the_tests_named_are_there(where):
    module, _, name = where.partition(".")
    assert f"def {name}" in (ROOT / f"tests/{module}.py").read_text()
