from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
from treediffusion.errors import CheckpointError
from treediffusion.files import replace_directory, write_atomic, write_json, write_text

OLD = "the old content"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_text(OLD)
    return path


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text(OLD)
    return folder


def refusing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_write_text_replaces_and_keeps_line_ends(old: Path) -> None:
    write_text(old, "ä\r\nb\n")
    assert old.read_bytes() == "ä\r\nb\n".encode()
    assert os.listdir(old.parent) == [old.name]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


def test_relative_path_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("plain.txt"), "x")
    assert os.listdir(tmp_path) == ["plain.txt"]


def test_longest_name_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "x")
    assert path.read_text() == "x"


def test_umask_decides_the_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "ours", "x")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_json_round_trip_keeps_the_order_of_keys(tmp_path: Path) -> None:
    value = {"z": 1, "a": [0.1, "é", None]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert list(json.loads(text).items()) == list(value.items())
    assert text.endswith("}\n")
    assert "é" in text


@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), ValueError), (float("inf"), ValueError), (b"", TypeError)]
)
def test_json_refuses_what_json_has_not(old: Path, value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="JSON"):
        write_json(old, {"value": value})
    assert old.read_text() == OLD


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_refused_write_leaves_the_old_file_and_nothing_else(old: Path, number: int) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(b"half of the")
        raise refusing(number)

    with pytest.raises(CheckpointError) as caught:
        write_atomic(old, write)
    assert old.read_text() == OLD
    assert os.listdir(old.parent) == [old.name]
    assert caught.value.name == str(old)
    assert caught.value.got == os.strerror(number)
    assert caught.value.hint
    assert caught.value.errno == number


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_full_at_the_end(old: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Many file systems report a full disk only when the data is forced out."""

    def refuse(*_: object, **__: object) -> None:
        raise refusing(errno.ENOSPC)

    monkeypatch.setattr(os if call == "fsync" else Path, call, refuse)
    with pytest.raises(CheckpointError, match=r"No space left.*free some space"):
        write_text(old, "new")
    assert old.read_text() == OLD
    assert os.listdir(old.parent) == [old.name]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_device_that_is_really_full(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_full(path: Path, *_: object) -> BinaryIO:
        return open("/dev/full", "wb")

    monkeypatch.setattr(Path, "open", to_full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_text(old, "new")
    monkeypatch.undo()
    assert old.read_text() == OLD


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no file size limits on this system")
def test_size_limit_that_is_really_reached(old: Path) -> None:
    """The kernel itself cuts the write short after 4 KiB, as a full disk does."""
    code = """
import resource, signal, sys
from pathlib import Path
from treediffusion.errors import CheckpointError
from treediffusion.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_text(Path(sys.argv[1]), "n" * 100_000)
except CheckpointError as error:
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code, str(old)], check=False).returncode == 7
    assert old.read_text() == OLD
    assert os.listdir(old.parent) == [old.name]


def test_interrupt_leaves_nothing_behind_and_passes_through(old: Path) -> None:
    def write(stream: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(old, write)
    assert old.read_text() == OLD
    assert os.listdir(old.parent) == [old.name]


def test_kill_in_the_middle_leaves_the_old_file_whole(old: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from treediffusion.files import write_atomic
def write(stream):
    stream.write(b"half of the")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomic(Path(sys.argv[1]), write)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(old)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert old.read_text() == OLD
    left = [name for name in os.listdir(old.parent) if name != old.name]
    assert all(name.startswith(".state.json.") and name.endswith(".tmp") for name in left)


def test_path_through_a_file(old: Path) -> None:
    with pytest.raises(CheckpointError, match="a part of the path is a file"):
        write_text(old / "below.txt", "x")


def test_path_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="give the name of a file"):
        write_text(tmp_path, "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match="you may write to"):
        write_text(tmp_path / "x", "x")
    tmp_path.chmod(0o700)


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    with replace_directory(target) as fresh:
        (fresh / "graphs").mkdir()
        (fresh / "graphs" / "a.onnx").write_text("a")
        assert not target.exists()
    assert (target / "graphs" / "a.onnx").read_text() == "a"
    assert os.listdir(target.parent) == ["bundle"]


def test_old_folder_is_replaced_not_merged(old_folder: Path) -> None:
    (old_folder / "stale.onnx").write_text("stale")
    with replace_directory(old_folder) as fresh:
        (fresh / "manifest.json").write_text("new")
    assert os.listdir(old_folder) == ["manifest.json"]
    assert (old_folder / "manifest.json").read_text() == "new"
    assert os.listdir(old_folder.parent) == ["bundle"]


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with replace_directory(tmp_path / "bundle") as fresh:
        (fresh / "x").write_text("x")
    assert os.listdir(tmp_path / "bundle") == ["x"]


@pytest.mark.parametrize("error", [refusing(errno.ENOSPC), ValueError("bad graph")])
def test_failed_block_leaves_the_old_folder(old_folder: Path, error: Exception) -> None:
    expected = CheckpointError if isinstance(error, OSError) else ValueError

    def fail() -> None:
        with replace_directory(old_folder) as fresh:
            (fresh / "manifest.json").write_text("half")
            raise error

    with pytest.raises(expected):
        fail()
    assert (old_folder / "manifest.json").read_text() == OLD
    assert os.listdir(old_folder.parent) == ["bundle"]


def test_failed_last_rename_moves_the_old_folder_back(
    old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    calls: list[Path] = []

    def refuse_second(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise refusing(errno.EIO)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_second)
    with pytest.raises(CheckpointError), replace_directory(old_folder):
        pass
    assert (old_folder / "manifest.json").read_text() == OLD
    assert os.listdir(old_folder.parent) == ["bundle"]


def test_somebody_elses_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"other files and no run\.json"):
        replace_directory(tmp_path, marker="run.json").__enter__()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_file_in_the_place_of_a_folder_is_refused(old: Path) -> None:
    with pytest.raises(CheckpointError, match="got a file or a link"):
        replace_directory(old).__enter__()
    assert old.read_text() == OLD
