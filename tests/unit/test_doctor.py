from __future__ import annotations

from pathlib import Path

import pytest
from treediffusion import doctor as module
from treediffusion.doctor import Check, Probe, State, doctor, examine, report

BROKEN_WAYS = {
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "exits": "raise SystemExit(0)",
    "lacks_a_part": "import surely_no_such_dependency",
    "lacks_a_library": "raise ImportError('libgone.so: cannot open shared object file')",
    "fails": "raise RuntimeError('bad state')",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules the child process can import."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_absent_package_is_told_how_to_install() -> None:
    found = examine(Probe("ghost", "surely_no_such_package", "tensorrt"))
    assert found == Check("ghost", "-", "absent", 'pip install "treediffusion[tensorrt]"')


@pytest.mark.parametrize("way", BROKEN_WAYS)
def test_broken_package_is_a_row_not_the_end(packages: Path, way: str) -> None:
    (packages / f"{way}.py").write_text(BROKEN_WAYS[way])
    found = examine(Probe("bad", way, "gpu"))
    assert (found.state, found.version) == ("broken", "-")
    assert found.detail


def test_package_that_hangs_is_broken(packages: Path) -> None:
    (packages / "hangs.py").write_text("import time; time.sleep(60)")
    found = examine(Probe("slow", "hangs", "gpu"), timeout_s=1)
    assert found == Check("slow", "-", "broken", "importing it took more than 1 s")


def test_package_may_talk_while_it_loads(packages: Path) -> None:
    (packages / "talks.py").write_text("__version__ = '1.2'; print('welcome', end='')")
    assert examine(Probe("loud", "talks", "")) == Check("loud", "1.2", "ok", "")


def test_folder_of_the_working_directory_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "surely_stray").mkdir()
    (tmp_path / "surely_stray" / "__init__.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert examine(Probe("stray", "surely_stray", "cpu")).state == "absent"


def test_onnxruntime_really_runs_the_model_made_by_hand() -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install '.[cpu]'")
    found = examine(Probe("onnxruntime", "onnxruntime", "cpu"))
    assert found.state == "ok"
    assert "runs on" in found.detail
    assert "CPUExecutionProvider" in found.detail


def test_model_made_by_hand_is_valid_onnx() -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install '.[train]'")
    model = onnx.load_from_string(module._identity_model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_report_has_every_row_once_in_a_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(probe: Probe) -> Check:
        return Check(probe.name, "1", "ok")

    monkeypatch.setattr(module, "examine", pretend)
    names = [check.name for check in report()]
    assert names[:4] == ["treediffusion", "python", "platform", "cpu"]
    assert names[4:] == [probe.name for probe in module.PROBES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("absent", 0), ("broken", 1)])
def test_exit_code_and_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: State, code: int
) -> None:
    monkeypatch.setattr(module, "report", lambda: [Check("thing", "3", state, "see [docs]")])
    assert doctor() == code
    printed = capsys.readouterr().out
    assert state in printed
    assert "see [docs]" in printed
