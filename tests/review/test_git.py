"""The questions to Git, also from a folder below the repository's root."""

import pytest
import scratch

from regbench.errors import UserError
from regbench.review import git

pytestmark = pytest.mark.dvc


@pytest.fixture(params=["", "below"])
def repository(tmp_path, monkeypatch, request):
    """A repository with a committed file; the working directory is its root or a folder in it."""
    folder = tmp_path / request.param
    folder.mkdir(exist_ok=True)
    root = scratch.Repository(tmp_path)
    root.run("git", "init", "-q", "-b", "main")
    for name in ("a.txt", "ü :(top).txt"):
        (folder / name).write_text("one")
    root.commit("first")
    monkeypatch.chdir(folder)
    return scratch.Repository(folder)


def test_files_in_commits(repository):
    first = git.commit("HEAD")
    assert git.blob("main", "a.txt") == b"one"
    assert git.blob("main", "b.txt") is git.blob("nowhere", "a.txt") is None
    repository.write("a.txt", "two")
    assert git.uncommitted(["a.txt", "ü :(top).txt", "absent.txt"]) == ["a.txt"]
    repository.write("b.txt", "new")
    assert git.uncommitted(["b.txt", "a.txt"]) == ["b.txt", "a.txt"]
    assert git.changed_since(first, ["a.txt", "b.txt"]) == ["a.txt"]
    (repository.folder / "ü :(top).txt").unlink()
    assert git.uncommitted(["ü :(top).txt"]) == ["ü :(top).txt"]
    repository.commit("second")
    assert git.uncommitted(["a.txt", "b.txt"]) == []
    assert git.last_commit_of("a.txt") == git.commit("HEAD") != first
    assert git.last_commit_of("never.txt") is None
    assert git.merge_base(first, "HEAD") == first


def test_the_working_directory_decides_which_repository_it_is(repository, monkeypatch, tmp_path_factory):
    """Hooks and other programs set variables that name another repository."""
    other = scratch.Repository(tmp_path_factory.mktemp("other"))
    other.run("git", "init", "-q", "-b", "main")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.folder))
    assert git.blob("HEAD", "a.txt") == b"one"


def test_signatures_are_not_taken_for_commits(repository):
    repository.run("git", "config", "log.showSignature", "true")
    assert git.last_commit_of("a.txt") == git.commit("HEAD")


def test_revisions_that_are_not_there(repository):
    assert git.commit("origin/nowhere") is git.commit("--help") is git.commit("") is None
    repository.run("git", "switch", "-q", "--orphan", "alone")
    (repository.folder / "c.txt").write_text("three")
    repository.commit("another root")
    with pytest.raises(UserError, match=r"^main and HEAD share no history here \(in CI: fetch the whole history\)$"):
        git.merge_base("main", "HEAD")


def test_what_git_says_is_passed_on(repository):
    with pytest.raises(UserError, match=r"`git log` failed in .*unknown revision"):
        git.output("log", "nowhere")
    with pytest.raises(UserError, match="can't be asked about"):
        git.uncommitted(["a\0b"])
