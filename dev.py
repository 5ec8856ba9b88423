#!/usr/bin/env python3
"""Set-up and daily commands of HyVideo Nodes, with the standard library alone (Python 3.11 to 3.13).

    python3 dev.py demo [--prompt TEXT] [--seed N] [--out FILE.mp4]   a video from the embedded model
    python3 dev.py test [pytest arguments]                            the test suite
    python3 dev.py lint                                               style, formatting, types
    python3 dev.py bench NAME [its arguments]                         one of benchmarks/*.py
    python3 dev.py train-embedded [its arguments]                     makes embedded/ from nothing

The first run makes .venv beside this file and installs requirements-dev.txt there; later runs install nothing.
--no-venv, before or after the command, uses the running interpreter and installs nothing at all.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements-dev.txt"
VENV = ROOT / ".venv"
STAMP = VENV / "made-by-dev.txt"
UNFINISHED = "unfinished"

# The text encoders' tests run a second time with the oldest transformers that we support, over the same torch.
OLD_TRANSFORMERS = VENV / "old_transformers"
OLD_TRANSFORMERS_PINS = ("transformers==4.50.3", "tokenizers==0.21.4", "huggingface_hub==0.36.0")

# Threads that spin while they wait for each other are five times slower where anything else runs on two cores.
CALM_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}

DEMO_GRAPH = ROOT / "workflows" / "api" / "embedded_t2v.json"
TRAINING = "hyvideo_nodes.hyvideo_core.training.embedded"


def say(message: str) -> None:
    """One line about what dev.py itself does, apart from the output of what it runs."""
    print(f"dev.py: {message}", file=sys.stderr, flush=True)


def stop(message: str) -> NoReturn:
    """Ends dev.py with this message and status 1."""
    raise SystemExit(f"dev.py: {message}")


def run(command: list[str], variables: Mapping[str, str] | None = None, *, quiet: bool = False) -> int:
    """Exit status of a command in the pack's folder, 128 + n when signal n killed it; `quiet` drops its stdout.

    Ctrl-C reaches the child by itself: it gets the time to clean up before we end too.
    """
    stdout = subprocess.DEVNULL if quiet else None
    environment = {**CALM_THREADS, **os.environ, **(variables or {})}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout) as child:
        try:
            status = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise
    return status if status >= 0 else 128 - status


def venv_python() -> Path:
    """The interpreter inside .venv."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def wanted_stamp() -> str:
    """The Python version and a hash of everything that is installed."""
    pins = REQUIREMENTS.read_bytes() + " ".join(OLD_TRANSFORMERS_PINS).encode()
    return f"{sys.implementation.cache_tag} {hashlib.sha256(pins).hexdigest()}"


def prepare_venv() -> None:
    """Makes .venv complete, which its stamp says: it reads "unfinished" until the last step is done."""
    wanted = wanted_stamp()
    found = STAMP.read_text(encoding="utf-8") if STAMP.is_file() else ""
    if found == wanted and venv_python().exists():
        return
    if not found and VENV.exists() and any(VENV.iterdir()):
        stop(f"{VENV} was not made by dev.py: move it away, or use it yourself with --no-venv")
    # pip may take a package that it was stopped in the middle of for installed, so unfinished means from nothing
    if found.split(" ")[0] != wanted.split(" ")[0] or not venv_python().exists():
        create_venv()
    STAMP.write_text(UNFINISHED, encoding="utf-8")
    install()
    STAMP.write_text(wanted, encoding="utf-8")


def create_venv() -> None:
    """An empty .venv of the running Python, in place of whatever dev.py had left there."""
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        stop("this Python cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv")
    if Path(sys.prefix).resolve() == VENV:
        stop(".venv must be made anew, but this is its own Python: deactivate it and run the command again")
    say(f"making {VENV} with Python {sys.version.split()[0]}")
    VENV.mkdir(exist_ok=True)
    STAMP.write_text(UNFINISHED, encoding="utf-8")
    for entry in VENV.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != STAMP:
            entry.unlink()
    if run([sys.executable, "-m", "venv", str(VENV)]):
        stop("making .venv failed, see above. On Debian and Ubuntu: apt install python3-venv")


def install() -> None:
    """Fills .venv: all requirements at once, so that nothing pulls in another torch than the pinned one."""
    pip = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check"]
    say("installing requirements-dev.txt (only this once)")
    if run([*pip, "--requirement", str(REQUIREMENTS)]):
        stop(
            "pip could not install requirements-dev.txt, see above; the same command tries again. "
            "Without a network: --no-venv uses the packages of this interpreter"
        )
    if run([*pip, "--no-deps", "--upgrade", "--target", str(OLD_TRANSFORMERS), *OLD_TRANSFORMERS_PINS]):
        shutil.rmtree(OLD_TRANSFORMERS, ignore_errors=True)


def interpreter(use_venv: bool, *needed: str) -> str:
    """The Python that runs the command: .venv's, made complete first, or our own if it has the needed packages."""
    if use_venv:
        prepare_venv()
        return str(venv_python())
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        stop(f"--no-venv: {sys.executable} has no {', '.join(missing)}: pip install -r requirements-dev.txt")
    return sys.executable


def alias_path() -> str:
    """PYTHONPATH with which scripts import the pack as hyvideo_nodes."""
    return os.pathsep.join(filter(None, [str(ROOT / "alias"), os.environ.get("PYTHONPATH")]))


def demo(use_venv: bool, arguments: list[str]) -> int:
    """Runs the embedded model's graph from the command line and puts its video where it was asked for."""
    options = demo_options(arguments)
    out: Path = options.out
    settings = demo_settings(options.prompt, options.seed)
    python = interpreter(use_venv, "torch", "transformers", "av")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=out.parent) as folder:
        command = [python, str(ROOT), "run", str(DEMO_GRAPH), "--output-dir", folder]
        # what it prints there is where its own file lies, which is moved below
        status = run(command + [word for setting in settings for word in ("--set", setting)], quiet=True)
        if status:
            return status
        videos = list(Path(folder).rglob("*.mp4"))
        if len(videos) != 1:
            stop(f"{DEMO_GRAPH.name} left {len(videos)} mp4 files instead of one; has its SaveVideo node changed?")
        replaced = " (replaced)" if out.exists() else ""
        videos[0].replace(out)
    print(f"video: {out}{replaced}")
    return 0


def demo_options(arguments: list[str]) -> argparse.Namespace:
    """What follows `demo`, checked before anything is installed."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description="Makes a video with the embedded model.")
    parser.add_argument("--prompt", metavar="TEXT", help="what to see; the embedded model knows simple shapes")
    parser.add_argument("--seed", type=int, metavar="N", help="another number, another video; 0 to 2^64 - 1")
    parser.add_argument("--out", type=Path, metavar="FILE.mp4", default=ROOT / "output" / "demo.mp4")
    parser.epilog = f"Without --out: {parser.get_default('out')}. A file that is already there is replaced."
    options = parser.parse_args(arguments)
    if options.seed is not None and not 0 <= options.seed < 2**64:
        parser.error(f"--seed {options.seed}: expected 0 to 2^64 - 1")
    if options.out.suffix.lower() != ".mp4" or options.out.is_dir():
        parser.error(f"--out {options.out}: expected the name of an .mp4 file")
    options.out = options.out.resolve()
    return options


def demo_settings(prompt: str | None, seed: int | None) -> list[str]:
    """NODE_ID.INPUT=VALUE for what was given; the graph's own values stand for the rest."""
    if not DEMO_GRAPH.is_file():
        stop(f"{DEMO_GRAPH} is missing: is this a complete clone?")
    graph: dict[str, dict] = json.loads(DEMO_GRAPH.read_text(encoding="utf-8"))
    settings = []
    for class_type, name, value in (("HYVTextEncode", "prompt", prompt), ("HYVSampler", "seed", seed)):
        if value is None:
            continue
        nodes = [node_id for node_id, node in graph.items() if node["class_type"] == class_type]
        if len(nodes) != 1:
            stop(f"{DEMO_GRAPH.name}: expected one {class_type} node, found {len(nodes)}")
        settings.append(f"{nodes[0]}.{name}={value}")
    return settings


def run_tests(use_venv: bool, arguments: list[str]) -> int:
    """pytest with the arguments as they came, and with the oldest transformers beside the newest."""
    python = interpreter(use_venv, "pytest", "torch")
    variables = {}
    if use_venv and OLD_TRANSFORMERS.is_dir():
        variables["HYV_OLD_TRANSFORMERS"] = os.environ.get("HYV_OLD_TRANSFORMERS", str(OLD_TRANSFORMERS))
    elif use_venv:
        say(f"{OLD_TRANSFORMERS_PINS[0]} could not be installed: its tests are skipped. Delete .venv to try again")
    return run([python, "-m", "pytest", *arguments], variables)


def lint(use_venv: bool, arguments: list[str]) -> int:
    """All three checkers, even if the first finds something; the status of the first that did."""
    if arguments:
        stop(f"lint takes no arguments, got {' '.join(arguments)}")
    python = interpreter(use_venv, "ruff", "mypy")
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])
    statuses = [run([python, "-m", *check]) for check in checks]
    return next(filter(None, statuses), 0)


def bench(use_venv: bool, arguments: list[str]) -> int:
    """One script of benchmarks/ with its arguments."""
    paths = (ROOT / "benchmarks").glob("*.py")
    known = sorted(path.stem for path in paths if "__main__" in path.read_text(encoding="utf-8"))
    name, *rest = arguments or [""]
    if name not in known:
        stop(f"bench {name}: expected the name of a benchmark: {', '.join(known) or 'there are none'}")
    python = interpreter(use_venv, "torch")
    return run([python, str(ROOT / "benchmarks" / f"{name}.py"), *rest], {"PYTHONPATH": alias_path()})


def train_embedded(use_venv: bool, arguments: list[str]) -> int:
    """The training that makes embedded/."""
    python = interpreter(use_venv, "torch", "transformers")
    # -P keeps the pack's folder off sys.path, where every module would have a second name
    return run([python, "-P", "-m", TRAINING, *arguments], {"PYTHONPATH": alias_path()})


COMMANDS: dict[str, Callable[[bool, list[str]], int]] = {
    "demo": demo,
    "test": run_tests,
    "lint": lint,
    "bench": bench,
    "train-embedded": train_embedded,
}


def main(argv: list[str]) -> int:
    """Exit status of the command that argv names."""
    if sys.version_info < (3, 11):
        stop(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; try python3.11 dev.py ...")
    ours = argv[: argv.index("--")] if "--" in argv else argv
    use_venv = "--no-venv" not in ours
    name, *arguments = [word for word in ours if word != "--no-venv"] + argv[len(ours) :] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    if name not in COMMANDS:
        stop(f"no command {name!r}; there are: {', '.join(COMMANDS)}")
    try:
        return COMMANDS[name](use_venv, arguments)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
