"""The pages: each command runs here or in another test, or has a reason why not; links and messages exist."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import dvc
import pytest
import yaml
from scratch import ROOT, Repository, stages_run

from regbench import catalogue, params

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
]
COME_AND_GO = "pipeline/test_whole.py::test_one_more_regularizer_and_one_less"
QUEUE = "pipeline/test_whole.py::test_queued_experiments_run_in_copies"
SEARCH = "search/test_search.py::test_killed_continued_and_applied"
SEARCHED = "search/test_search.py::test_what_commands_search"
SETTINGS = "docs/test_docs.py::test_settings_of_commands_are_allowed"

HERE = {
    "dvc exp show --md --only-changed --hide-workspace --drop '.*(accuracy_test|difference|gap|zero|reg_loss|seeds).*"
    "|src.*|stages.*|plans.*|runs.*|prepared.*'",
    "dvc exp diff randy-hunk stiff-grig --md",
    "dvc exp run -S +reg.hoyer=0.00001",
    "dvc metrics diff",
    "dvc params diff main",
    "dvc plots diff",
    "dvc repro -f prepare",
    "dvc repro evaluate@l2-0",
    "dvc repro -f -s train@l2-0",
    "dvc repro -f -s evaluate@l2-0",
    "dvc checkout",
    "dvc status",
    "dvc pull",
    "dvc push",
    "dvc exp show",
    'git commit -m "a remote" .dvc/config',
}
"""Commands that the tests below run, or beginnings of such commands."""

ELSEWHERE = {
    ". .venv/bin/activate": "runner/test_cli.py::test_how_to_activate_is_said_where_dvc_is_not_found",
    "dvc exp run -S '+reg.elastic={l1: 1e-5, l2: 1e-4}'": COME_AND_GO,
    "dvc exp run -S '~reg.l1'": COME_AND_GO,
    "dvc exp apply randy-hunk": QUEUE,
    "dvc exp apply search-l2-2": SEARCH,
    "dvc exp run -S reg.l2=1e-4": SEARCH,
    "dvc exp run --queue -S 'reg.l2=1e-5,1e-4'": QUEUE,
    "dvc exp run --run-all": QUEUE,
    "dvc exp run --run-all --jobs 2": QUEUE,
    "dvc exp run -S reg.l2=0.0005": "pipeline/test_whole.py::test_small_strengths",
    "dvc metrics diff main --md": "pipeline/test_whole.py::test_a_clone_without_cache_compares_commits",
    "dvc plots diff main -o dvc_plots": "pipeline/test_whole.py::test_a_clone_without_cache_compares_commits",
    "dvc remote add --default store /mnt/shared/regbench": "runner/test_store.py::test_a_new_remote_store_is_empty",
    "dvc remote add --default store s3://bucket/regbench": "runner/test_store.py::test_a_new_remote_store_is_empty",
    "dvc repro": "pipeline/test_reruns.py::test_only_what_has_to_runs_again",
    "git add -A": "runner/test_lock.py::test_a_merge_of_two_result_branches",
    "git commit": "runner/test_lock.py::test_a_merge_of_two_result_branches",
    "make check": "review/test_check.py::test_a_clone_without_a_cache",
    "make help": "runner/test_makefile.py::test_help_names_every_target",
    "make pr-report": "review/test_pull_request.py::test_nothing_changed",
    "make pr-report BASE=origin/main": "review/test_pull_request.py::test_regularizers_change_come_and_go",
    "make repro": "runner/test_makefile.py::test_repro",
    "make repro CLUSTER=…": "runner/test_makefile.py::test_repro",
    "make repro JOBS=1": "runner/test_makefile.py::test_repro",
    "make repro JOBS=2": "runner/test_makefile.py::test_repro",
    "make repro PYTHON=/path/to/python3.12": "runner/test_makefile.py::test_a_python_of_the_environment_does_not_count",
    "make docs": "review/test_blocks.py::test_a_changed_number_is_found_and_filled_again",
    "regbench export l2-0 --to onnx": "evaluation/test_export.py::test_the_examples_of_the_page",
    "regbench export l2-0 --to saved_model": "evaluation/test_export.py::test_the_examples_of_the_page",
    "regbench export l2-0 --to tflite": "evaluation/test_export.py::test_the_command",
    "regbench predict l2-0 photos/": "evaluation/test_classify.py::test_the_command",
    "regbench predict l2-0 photos/ --csv": "evaluation/test_classify.py::test_the_command",
    "regbench predict model.keras one.jpg two.png": "evaluation/test_classify.py::test_what_is_printed",
    "python docs/plots_page.py": "report/test_plots_page.py::test_the_page_is_what_its_script_makes",
    "regbench compare": "review/test_pull_request.py::test_any_two_revisions",
    "regbench compare HEAD": "review/test_pull_request.py::test_any_two_revisions",
    "regbench compare randy-hunk stiff-grig": "review/test_pull_request.py::test_any_two_revisions",
    "regbench list": "runner/test_cli.py::test_list_names_every_kind_and_network",
    "regbench mend": "runner/test_lock.py::test_what_dvc_refuses_is_mended",
    "regbench show": "review/test_experiments.py::test_the_program",
    "regbench show --sort val": "review/test_experiments.py::test_the_program",
    "regbench show -n 10": "review/test_experiments.py::test_the_program",
    "regbench watch": "runner/test_watch.py::test_it_ends_with_ctrl_c",
    "regbench watch --port 8000": "runner/test_watch.py::test_it_ends_with_ctrl_c",
    "dvc exp run": "pipeline/test_params_file.py::test_one_line_changes",
    "dvc metrics show": "core/test_live.py::test_dvclive_writes_what_dvc_reads_and_no_experiment",
    "dvc plots show": "report/test_plots_page.py::test_it_draws_without_a_network",
    "dvc exp run -S live.tensorboard=true": "pipeline/test_params_file.py::test_one_line_changes",
    "regbench push": "runner/test_store.py::test_a_clone_at_a_commit_older_than_the_remote_trains_nothing",
    "regbench repro": "runner/test_local.py::test_side_by_side",
    "regbench search": SEARCH,
    "regbench search l2 --from 1e-6 --to 1e-2": SEARCH,
    "regbench search l1 l2 --from 1e-6 --to 1e-2": SEARCHED,
    "regbench search l1 l2 --from 1e-6 --to 1e-2 --seeds 5": SEARCHED,
    "regbench search l2 --over l1 --from 1e-5 --from 1e-6 --to 1e-2 --to 1e-4": SEARCHED,
    "regbench search elastic.l2 --over elastic.l1 --from 1e-6 --to 1e-3": SEARCHED,
    "regbench search l2 --over l1 --over dropout --from 1e-6 --to 1e-2 --from 1e-7 --to 1e-4 --from 0.05 "
    "--to 0.5": "search/test_search.py::test_three_kinds",
    "regbench repro --jobs 1": "runner/test_local.py::test_one_at_a_time",
    "regbench table": "report/test_write.py::test_seconds_are_those_of_the_last_training_here",
    "dvc exp run -S 'seeds=[0,1,2,3,4,5]'": "pipeline/test_params_file.py::test_one_line_changes",
    "dvc exp run -S data.dataset=./photos -S data.train_images=null -S data.validation_images=200": SETTINGS,
    "dvc exp run -S data.dataset=./photos -S data.train_images=null -S data.validation_images=200 "
    "-S data.image_size=96": SETTINGS,
    "dvc exp run -S data.dataset=fashion_mnist": SETTINGS,
    "dvc exp run -S model.network=ResNet50 -S data.image_size=64": SETTINGS,
    "dvc add resnet50_notop.h5": "networks/test_own.py::test_dvc_plans_anew_when_its_file_changes",
    "dvc exp run --queue": QUEUE,
    "regbench check": "review/test_check.py::test_a_clone_without_a_cache",
}
"""Commands that another test runs, or whose settings it checks."""

NOT_RUN = {
    "cp docs/article/params.yaml params.yaml": "hours; `test_the_articles_params_are_what_the_comments_say`",
    "cp docs/study/params.yaml params.yaml": "a search follows; `test_the_params_of_studies_are_allowed`",
    "cp docs/kinds/params.yaml params.yaml": "an hour of training follows; `test_the_params_of_studies_are_allowed`",
    "git checkout params.yaml": "Git's own",
    "git fetch --unshallow": "Git's own",
    "git fetch origin": "Git's own",
    "git rm -r --cached": "Git's own",
    "make bench": "more than an hour on an idle machine",
    "make cluster": "CI runs it",
    "make lint": "CI runs it",
    "make lock": "needs uv and the network",
    "make setup": "CI runs it",
    "make test": "this is it",
    "make test-fast": "part of it",
    "make test-faults": "CI runs it",
    "make test-fuzz": "CI runs it",
    "pip install -e .": "`make setup` installs the same packages at pinned versions",
    "pip install pre-commit && pre-commit install": "needs the network",
    ".venv/bin/pip install -e '.[gpu]'": "2 GB of CUDA packages",
    ".venv/bin/pip install -e '.[live]'": "the network",
    ".venv/bin/pip install -e '.[export]'": "the network",
    ".venv/bin/pip install -e '.[search]'": "the network",
    "python benchmarks/bench.py agreement": "part of `make bench`",
    "python benchmarks/bench.py cluster": "needs Ray",
    "python benchmarks/bench.py gpu": "needs a GPU",
    "python benchmarks/bench.py gpu_jobs": "needs a GPU",
    "python benchmarks/coverage.py": "two minutes; `test_seeds_and_images.py` has a part of it",
    "python benchmarks/search.py /tmp/search": "half an hour",
    "python benchmarks/seeds.py /tmp/seeds": "half an hour",
    "python benchmarks/seeds.py /tmp/seeds --triples 1": "eight minutes and more",
    "python benchmarks/study.py /tmp/study": "half an hour",
    "python benchmarks/batch_norm.py /tmp/batch_norm": "five minutes",
    "python benchmarks/averages.py docs/article/params-32px.yaml /tmp/averages": "half an hour",
    "python benchmarks/averages.py docs/article/params.yaml /tmp/article": "hours, for a GPU",
    "python benchmarks/bench.py dvc_at_scale": "ten minutes",
}

PROGRAMS = ("dvc ", "regbench ", "make ", "pip ", "git ", "python ", "cp ", ". ", ".venv/bin/")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def commands(page):
    """The commands in a page's code blocks without a language, and in its sentences.

    In blocks, comments are removed and continued lines are joined.
    """
    text = text_of(page)
    blocks = (block.replace("\\\n", " ").splitlines() for language, block in BLOCK.findall(text) if not language)
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks for line in block]
    sentences = BLOCK.sub("", re.sub(r"^\| `[^|]*\|", "", text, flags=re.MULTILINE))
    for line in lines + re.findall(r"`([^`]+)`", sentences):
        command = " ".join(line.split())
        if command.startswith(PROGRAMS):
            yield command


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_accounted_for(page):
    assert [it for it in commands(page) if it not in HERE and it not in ELSEWHERE and it not in NOT_RUN] == []


def test_no_entry_is_of_a_command_that_is_gone():
    known = {command for page in PAGES for command in commands(page)}
    assert {*HERE, *ELSEWHERE, *NOT_RUN} - known == set()


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_the_tests_named_are_there(where):
    path, _, name = where.partition("::")
    assert f"def {name}(" in text_of(f"tests/{path}")


@pytest.mark.parametrize("page", PAGES)
def test_the_files_and_tests_that_a_page_names_are_there(page):
    named = re.findall(r"`((?:src|tests|docs|benchmarks|stages|\.github)/[\w./-]*)`", BLOCK.sub("", text_of(page)))
    assert [path for path in named if not (ROOT / path).exists() and "hoyer" not in path] == []


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text_of(page))):
        if target.startswith(("http:", "https:")):
            continue
        path, _, heading = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (heading and heading not in headings(file)):
            broken.append(target)
    assert broken == []


def headings(file):
    """The headings of a page as GitHub and GitLab name them in links."""
    found = re.findall(r"^#+ (.*)$", BLOCK.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found]


def literals(path):
    """The strings in a Python file; `…` stands for each value that an f-string fills in."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def messages(part):
    """The messages in the first column of the tables in a part of docs/troubleshooting.md."""
    cells = re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE)
    return [message for cell in cells for message in cell.split("`")[1::2]]


def absent(listed, known):
    """The listed messages that are in none of the known texts; `…` stands for any text within a line."""
    patterns = {message: "[^\n]*".join(map(re.escape, message.split("…"))) for message in listed}
    return [message for message, pattern in patterns.items() if not any(re.search(pattern, text) for text in known)]


def test_the_messages_that_troubleshooting_explains_exist():
    ours, dvcs = text_of("docs/troubleshooting.md").split("## What DVC says")
    known = [text for path in (ROOT / "src").rglob("*.py") for text in literals(path)]
    listed = messages(ours)
    shells = [f"{program}: command not found" for program in ("dvc", "regbench")]
    assert len(listed) > 30
    assert absent(listed, [*known, text_of("Makefile"), *shells]) == []
    sources = [path.read_text(encoding="utf-8") for path in Path(dvc.__file__).parent.rglob("*.py")]
    pythons = "'Value' object is not iterable"  # Python's message about a class of DVC, which DVC passes on
    assert absent(messages(dvcs), [*sources, pythons]) == []


def params_of(path):
    return yaml.load(text_of(path), Loader=params.Loader)


@pytest.mark.parametrize(("study", "lines"), [("study", 3), ("kinds", 24), ("batch_norm", 2)])
def test_the_params_of_studies_are_allowed(study, lines):
    settings = params.load(ROOT / f"docs/{study}/params.yaml")
    assert settings.seeds == (0, 1, 2) and len(settings.reg) == lines


def test_the_study_of_strengths_has_the_projects_settings():
    assert params_of("docs/study/params.yaml") == params_of("params.yaml")


def test_the_study_of_kinds_has_the_projects_settings():
    """Except for later changes of the project's settings, named on the study's page: schedule, warm-up, evaluation."""
    ours, studys = params_of("params.yaml"), params_of("docs/kinds/params.yaml")
    assert (studys["train"]["warmup_epochs"], ours["train"]["warmup_epochs"]) == (1, 2)
    assert (studys["train"]["schedule"], studys["train"]["cooldown_epochs"]) == ("constant", 3)
    studys["train"] |= {name: ours["train"][name] for name in ("schedule", "cooldown_epochs", "warmup_epochs")}
    studys["evaluate"] = ours["evaluate"]
    assert {kind for line in studys["reg"].values() for kind in (line if isinstance(line, dict) else ())} == {"l1"}
    assert ours | {"reg": None} == studys | {"reg": None}
    assert ours["reg"].items() <= studys["reg"].items()
    assert catalogue.kinds().keys() - studys["reg"].keys() == {"early_stopping"}


CHECKED = [command for command, where in ELSEWHERE.items() if where == SETTINGS]


def changed_by(command):
    """The committed params, changed by the settings of a command `dvc exp run -S …`."""
    changed = params_of("params.yaml")
    for setting in (word for word in shlex.split(command)[3:] if word != "-S"):
        key, _, value = setting.lstrip("~+").partition("=")
        *sections, name = key.split(".")
        place = changed
        for section in sections:
            place = place[section]
        if setting.startswith("~"):
            del place[name]
        else:
            assert setting.startswith("+") or name in place
            place[name] = yaml.safe_load(value)
    return changed


@pytest.mark.parametrize("command", CHECKED, ids=lambda command: command[:60])
def test_settings_of_commands_are_allowed(command):
    params.parse(yaml.safe_dump(changed_by(command)))


def test_the_articles_params_are_what_the_comments_say():
    changed, section, comment, compared = params_of("docs/article/params.yaml"), "", "", []
    for line in text_of("params.yaml").splitlines():
        key, _, _ = line.strip().partition(":")
        if line.strip().startswith("#"):
            comment += f" {line.strip(' #')}"
        elif not line.startswith(" "):
            section, comment = key, ""
        else:
            said = re.search(r"article: ([^,;)]+)", comment)
            both_averages = key in ("batch_norm_images", "moving_averages")
            if said and isinstance(changed[section], dict) and key in changed[section] and not both_averages:
                value = None if said[1] == "empty" else yaml.safe_load(said[1])
                assert changed[section][key] == value, f"{section}.{key}"
                compared.append(key)
            comment = ""
    assert len(compared) > 20
    assert changed["reg"] == {"none": 0, "l1": 0.001, "l2": 0.001} and changed["seeds"] == [0]
    smaller = params_of("docs/article/params-32px.yaml")
    changed["data"] |= {"image_size": 32, "train_images": 10000, "test_images": 5000}
    changed["train"] |= {"jit": False}
    assert smaller == changed | {"seeds": [0, 1, 2]}
    params.load(ROOT / "docs/article/params-32px.yaml")


@pytest.fixture
def repository(trained, tmp_path):
    """The project at a tiny size, its results committed."""
    return Repository(shutil.copytree(trained, tmp_path / "project", symlinks=True))


def run(repository, command):
    return repository.run(*shlex.split(command))


@pytest.mark.slow
@pytest.mark.dvc
def test_the_example_of_a_new_kind_and_an_experiment_with_it(repository):
    language, example = BLOCK.findall(text_of("docs/regularizers.md"))[1]
    assert language == "python"
    repository.write("src/regbench/regularizers/hoyer.py", example)
    output = run(repository, "dvc exp run -S +reg.hoyer=0.00001")
    assert set(stages_run(output)) == {"plan", "train@hoyer-0", "evaluate@hoyer-0", "report"}
    assert "hoyer.accuracy_test" in run(repository, "dvc metrics diff")
    assert "reg.hoyer" in run(repository, "dvc params diff main")
    run(repository, "dvc plots diff -o dvc_plots")
    assert (repository.folder / "dvc_plots/index.html").exists()
    (name,) = re.findall(r"\[([\w-]+)\]", run(repository, "dvc exp list"))
    assert "hoyer.reg_loss" in run(repository, f"dvc exp diff main {name} --md")
    table = run(repository, next(it for it in commands("docs/pull-requests.md") if it.startswith("dvc exp show")))
    heading = next(line for line in table.splitlines() if "Experiment" in line)
    assert "reg.hoyer" in heading and "accuracy_validation" in heading, heading
    assert "accuracy_test" not in heading and len(heading.split("|")) < 12, heading


@pytest.mark.slow
@pytest.mark.dvc
def test_commands_that_repair(repository):
    for words in ("-f prepare", "-f -s train@l2-0", "-f -s evaluate@l2-0", "evaluate@l2-0"):
        output = run(repository, f"dvc repro {words}")
    assert "up to date" in output
    assert run(repository, "git status --porcelain") == ""
    (repository.folder / "runs/l2-0/evaluation/layers.csv").unlink()
    assert "evaluation" in run(repository, "dvc status")
    run(repository, "dvc checkout")
    assert "up to date" in run(repository, "dvc status")


@pytest.mark.slow
@pytest.mark.dvc
def test_a_remote_brings_models_and_images(repository, tmp_path):
    run(repository, f"dvc remote add --default store {shlex.quote(str(tmp_path / 'remote'))}")
    run(repository, 'git commit -m "a remote" .dvc/config')
    assert "pushed" in run(repository, "dvc push")
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    assert "fetched" in run(clone, "dvc pull")
    assert (clone.folder / "runs/l2-0/model.keras").exists()
    assert "up to date" in run(clone, "dvc repro")
