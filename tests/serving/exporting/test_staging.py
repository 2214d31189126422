"""A staged directory appears whole or not at all, and never in the place of something else."""

import os
import signal

import pytest

from defended.serving.exporting.staging import staged


def children(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_block_that_ends_well_becomes_the_target(tmp_path):
    target = tmp_path / "new" / "model" / "1"
    with staged(target) as partial:
        assert partial.parent.parent == target.parent
        assert partial.parent.name.startswith(".")
        assert list(partial.iterdir()) == []
        assert not target.exists()
        (partial / "file").write_text("content")
    assert (target / "file").read_text() == "content"
    assert children(target.parent) == ["1"]


def test_others_may_read_the_target_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with staged(tmp_path / "1") as partial:
            (partial / "file").write_text("")
    finally:
        os.umask(before)
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o755


def test_an_error_leaves_nothing_not_even_new_parents(tmp_path):
    with pytest.raises(RuntimeError, match="boom"):  # noqa: PT012, SIM117
        with staged(tmp_path / "a" / "b" / "1") as partial:
            (partial / "file").write_text("")
            raise RuntimeError("boom")
    assert children(tmp_path) == []


def test_an_error_leaves_parents_that_were_there(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), staged(tmp_path / "a" / "1"):
        raise RuntimeError
    assert children(tmp_path) == ["a"]


@pytest.mark.parametrize("kind", ["file", "empty directory", "filled directory", "broken link"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_is_there_stays(tmp_path, kind, when):
    target = tmp_path / "1"

    def appear():
        if kind == "file":
            target.write_text("theirs")
        elif kind == "broken link":
            target.symlink_to(tmp_path / "nowhere")
        else:
            target.mkdir()
            if kind == "filled directory":
                (target / "theirs").write_text("theirs")

    if when == "before":
        appear()
    with pytest.raises(FileExistsError) as caught:  # noqa: PT012, SIM117
        with staged(target) as partial:
            (partial / "ours").write_text("ours")
            appear()
    assert caught.value.filename == str(target)
    assert children(tmp_path) == ["1"]
    assert not (target / "ours").exists()
    if kind == "file":
        assert target.read_text() == "theirs"
    if kind == "filled directory":
        assert children(target) == ["theirs"]


def test_two_at_once_leave_each_other_alone(tmp_path):
    with staged(tmp_path / "1") as first:
        (first / "file").write_text("one")
        with staged(tmp_path / "2") as second:
            (second / "file").write_text("two")
        assert first.exists()
    assert [(tmp_path / name / "file").read_text() for name in ("1", "2")] == ["one", "two"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_directory_of_a_killed_process_is_removed_by_the_next(tmp_path):
    child = os.fork()
    if not child:
        try:
            with staged(tmp_path / "1") as partial:
                (partial / "half").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".partial-")
    with staged(tmp_path / "1") as partial:
        assert not leftover.exists()
        (partial / "file").write_text("whole")
    assert children(tmp_path) == ["1"]
    assert children(tmp_path / "1") == ["file"]


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError), staged(tmp_path / "file" / "model" / "1"):
        pass
    assert (tmp_path / "file").read_text() == ""
