"""What is written beside and renamed leaves every other file alone, and nothing of its own."""

import stat
import threading

import pytest

from optbook._files import replace_text, replacing


def everything_in(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["mine.npz", "mine", ".partial", "x" * 250 + ".npz"])
def test_the_users_files_stay(tmp_path, name):
    theirs = {"mine.partial": "a", "mine.npz.partial": "b"}
    for other, text in theirs.items():
        (tmp_path / other).write_text(text)
    replace_text(tmp_path / name, "old")
    replace_text(tmp_path / name, "new")
    assert everything_in(tmp_path) == theirs | {name: "new"}


def test_a_failure_leaves_what_was_there_and_no_more(tmp_path):
    replace_text(tmp_path / "mine.npz", "old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "mine.npz") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == {"mine.npz": "old"}


@pytest.mark.parametrize("names", [("run.layer0", "run.layer1"), ("run.npz", "run.npz")])
def test_two_at_a_time_do_not_meet(tmp_path, names):
    both_write = threading.Barrier(2, timeout=10)
    failures = []

    def write(name, text):
        try:
            with replacing(tmp_path / name) as partial:
                partial.write_text(text)
                both_write.wait()
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=pair) for pair in zip(names, ("first", "second"))]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    written = everything_in(tmp_path)
    assert set(written) == set(names) and set(written.values()) <= {"first", "second"}
    assert len(set(names)) == 1 or list(map(written.get, names)) == ["first", "second"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    replace_text(tmp_path / "ours", "")
    (tmp_path / "plain").touch()
    ours, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain"))
    assert ours == plain


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/no for mine.npz"):
        replace_text(tmp_path / "no" / "mine.npz", "new")
