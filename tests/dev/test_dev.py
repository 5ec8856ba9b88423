"""dev.py: what it installs and when, what reaches the commands, what it says when something is missing."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """Stands for dev.run: notes each command, and does to the disk what the real one would."""

    def __init__(self, dev) -> None:
        self.dev = dev
        self.commands: list[list[str]] = []
        self.variables: list[dict[str, str]] = []
        self.failing = ""

    def __call__(self, command: list[str], variables: dict[str, str] | None = None, *, quiet: bool = False) -> int:
        self.commands.append(command)
        self.variables.append(variables or {})
        if self.failing and self.failing in command:
            return 1
        if "venv" in command:
            self.dev.venv_python().parent.mkdir(parents=True)
            self.dev.venv_python().touch()
        if "--target" in command:
            self.dev.OLD_TRANSFORMERS.mkdir(exist_ok=True)
        if "run" in command:
            (Path(command[command.index("--output-dir") + 1]) / "clip_00001_.mp4").write_bytes(b"mp4")
        return 0

    def count(self, word: str) -> int:
        return sum(word in command for command in self.commands)


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """dev.py as a module, living in an empty folder."""
    monkeypatch.delenv("HYV_OLD_TRANSFORMERS", raising=False)  # set when dev.py itself runs these tests
    spec = importlib.util.spec_from_file_location("dev_under_test", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("REQUIREMENTS", "VENV", "STAMP", "OLD_TRANSFORMERS", "DEMO_GRAPH"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    module.REQUIREMENTS.write_text("torch==2.13.0\n", encoding="utf-8")
    module.DEMO_GRAPH.parent.mkdir(parents=True)
    nodes = {"3": "HYVTextEncode", "5": "HYVSampler", "9": "SaveVideo"}
    graph = {node_id: {"class_type": class_type, "inputs": {}} for node_id, class_type in nodes.items()}
    module.DEMO_GRAPH.write_text(json.dumps(graph), encoding="utf-8")
    return module


@pytest.fixture
def ran(dev, monkeypatch) -> Recorder:
    recorder = Recorder(dev)
    monkeypatch.setattr(dev, "run", recorder)
    return recorder


def test_first_run_installs_and_second_installs_nothing(dev, ran) -> None:
    assert dev.main(["test"]) == 0
    assert (ran.count("venv"), ran.count("--requirement"), ran.count("--target")) == (1, 1, 1)
    ran.commands.clear()
    assert dev.main(["test"]) == 0
    assert ran.commands == [[str(dev.venv_python()), "-m", "pytest"]]


def test_changed_requirements_are_installed_into_the_same_venv(dev, ran) -> None:
    dev.main(["test"])
    dev.REQUIREMENTS.write_text("torch==2.13.0\nnumpy\n", encoding="utf-8")
    dev.main(["test"])
    assert (ran.count("venv"), ran.count("--requirement")) == (1, 2)


def test_venv_of_another_python_is_remade(dev, ran) -> None:
    dev.main(["test"])
    dev.STAMP.write_text(dev.wanted_stamp().replace(sys.implementation.cache_tag, "cpython-39"), encoding="utf-8")
    leftover = dev.VENV / "lib" / "python3.9"
    leftover.mkdir(parents=True)
    dev.main(["test"])
    assert ran.count("venv") == 2
    assert not leftover.exists()


@pytest.mark.parametrize("failing", ["venv", "--requirement"])
def test_interrupted_install_starts_from_nothing(dev, ran, failing) -> None:
    ran.failing = failing
    with pytest.raises(SystemExit, match="see above"):
        dev.main(["test"])
    half = dev.VENV / "half_a_package"
    half.mkdir()
    ran.failing = ""
    assert dev.main(["test"]) == 0
    assert not half.exists()
    assert dev.STAMP.read_text(encoding="utf-8") == dev.wanted_stamp()


def test_venv_of_somebody_else_is_left_alone(dev, ran) -> None:
    mine = dev.VENV / "bin" / "activate"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(SystemExit, match="not made by dev"):
        dev.main(["test"])
    assert mine.exists()
    assert ran.commands == []


def test_missing_ensurepip_names_the_debian_package(dev, ran, monkeypatch) -> None:
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="apt install python3-venv"):
        dev.main(["test"])


def test_old_python_is_told_which_one_to_use(dev, monkeypatch) -> None:
    monkeypatch.setattr(dev.sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit, match=r"Python 3\.11 to 3\.13 is needed"):
        dev.main(["test"])


def test_tests_see_the_oldest_transformers_or_are_told_that_it_is_missing(dev, ran, capsys) -> None:
    ran.failing = "--target"
    assert dev.main(["test"]) == 0
    assert ran.variables[-1] == {}
    assert "transformers==4.50.3 could not be installed" in capsys.readouterr().err
    dev.OLD_TRANSFORMERS.mkdir()
    dev.main(["test"])
    assert ran.variables[-1] == {"HYV_OLD_TRANSFORMERS": str(dev.OLD_TRANSFORMERS)}


@pytest.mark.parametrize("argv", [["--no-venv", "test", "-k", "a b"], ["test", "-k", "a b", "--no-venv"]])
def test_no_venv_stands_anywhere_and_installs_nothing(dev, ran, argv) -> None:
    assert dev.main(argv) == 0
    assert ran.commands == [[sys.executable, "-m", "pytest", "-k", "a b"]]
    assert not dev.VENV.exists()


def test_no_venv_names_what_the_interpreter_lacks(dev, ran, monkeypatch) -> None:
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(SystemExit, match="has no torch: pip install -r requirements-dev"):
        dev.main(["test", "--no-venv"])


def test_everything_after_two_dashes_is_left_alone(dev, ran) -> None:
    dev.main(["test", "--", "--no-venv"])
    assert ran.commands[-1][-2:] == ["--", "--no-venv"]
    assert dev.VENV.exists()


def test_demo_sets_prompt_and_seed_and_leaves_one_video(dev, ran, tmp_path, capsys) -> None:
    out = tmp_path / "new" / "clip.mp4"
    assert dev.main(["demo", "--no-venv", "--prompt", "a = b", "--seed", "7", "--out", str(out)]) == 0
    (command,) = ran.commands
    assert command[1:4] == [str(dev.ROOT), "run", str(dev.DEMO_GRAPH)]
    assert command[-4:] == ["--set", "3.prompt=a = b", "--set", "5.seed=7"]
    assert [path.name for path in out.parent.iterdir()] == ["clip.mp4"]
    assert str(out) in capsys.readouterr().out


def test_demo_without_settings_keeps_the_graphs_own(dev, ran) -> None:
    assert dev.main(["demo", "--no-venv", "--out", str(dev.ROOT / "a.mp4")]) == 0
    assert "--set" not in ran.commands[0]


def test_demo_that_fails_keeps_the_older_video(dev, ran, tmp_path) -> None:
    out = tmp_path / "clip.mp4"
    out.write_bytes(b"older")
    ran.failing = "run"
    assert dev.main(["demo", "--no-venv", "--out", str(out)]) == 1
    assert out.read_bytes() == b"older"


@pytest.mark.parametrize("arguments", ["--seed -1", f"--seed {2**64}", "--out clip.gif", "--size 9"])
def test_demo_refuses_before_installing(dev, ran, arguments) -> None:
    with pytest.raises(SystemExit) as stopped:
        dev.main(["demo", *arguments.split()])
    assert stopped.value.code == 2
    assert ran.commands == []


def test_demo_says_that_its_graph_is_missing(dev, ran) -> None:
    dev.DEMO_GRAPH.unlink()
    with pytest.raises(SystemExit, match=r"embedded_t2v\.json is missing"):
        dev.main(["demo", "--no-venv"])


def test_lint_runs_every_checker_and_fails_with_any(dev, ran) -> None:
    ran.failing = "--check"
    assert dev.main(["lint", "--no-venv"]) == 1
    assert [command[2] for command in ran.commands] == ["ruff", "ruff", "mypy"]


def test_bench_knows_its_scripts(dev, ran) -> None:
    (dev.ROOT / "benchmarks").mkdir()
    (dev.ROOT / "benchmarks" / "forward.py").write_text('if __name__ == "__main__": ...', encoding="utf-8")
    (dev.ROOT / "benchmarks" / "what_scripts_share.py").touch()
    assert dev.main(["bench", "forward", "--steps", "3", "--no-venv"]) == 0
    assert ran.commands[-1][1:] == [str(dev.ROOT / "benchmarks" / "forward.py"), "--steps", "3"]
    assert ran.variables[-1]["PYTHONPATH"].startswith(str(dev.ROOT / "alias"))
    with pytest.raises(SystemExit, match="forward"):
        dev.main(["bench", "../forward", "--no-venv"])


def test_unknown_command_lists_the_known_ones(dev) -> None:
    with pytest.raises(SystemExit, match="no command 'tset'; there are: demo, test, lint, bench, train-embedded"):
        dev.main(["tset"])


SMALL_TESTS = """
import time

def test_good(): pass

def test_bad(): assert False

def test_slow():
    print("asleep", flush=True)
    time.sleep(20)
"""


@pytest.fixture
def small_pack(tmp_path, monkeypatch) -> Path:
    """A folder with dev.py and one test file, for runs of the real thing."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    shutil.copy(ROOT / "dev.py", tmp_path)
    shutil.copy(ROOT / "requirements-dev.txt", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(SMALL_TESTS, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("selected", "status"), [("good", 0), ("bad", 1), ("nothing", 5)])
def test_status_of_the_child_is_ours_and_its_last_line_the_last(small_pack, selected, status) -> None:
    command = [sys.executable, "dev.py", "test", "--no-venv", "-q", "-p", "no:cacheprovider", "-k", selected]
    done = subprocess.run(command, cwd=small_pack, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert " in " in done.stdout.splitlines()[-1]
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal to a process group there")
def test_ctrl_c_lets_the_child_finish(small_pack) -> None:
    command = [sys.executable, "dev.py", "--no-venv", "test", "-s", "-v", "-p", "no:cacheprovider", "-k", "slow"]
    options = {"cwd": small_pack, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell starts background jobs with Ctrl-C ignored, and this test may run in one
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        while "asleep" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in output
    assert "Traceback" not in errors


def test_dev_needs_the_standard_library_alone() -> None:
    tree = ast.parse((ROOT / "dev.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
