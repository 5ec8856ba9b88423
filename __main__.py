"""Front door of the command line: `python PACK_DIRECTORY run GRAPH.json`. ComfyUI never runs this file."""

import signal
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
# running a folder puts it on the path, and with it a second name for every module of the pack
sys.path[:] = [str(ROOT / "alias"), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]


def stop(*_signal: object) -> NoReturn:
    """Ends as Ctrl-C does: what is half written is removed."""
    raise KeyboardInterrupt


def start() -> int:
    """Exit status of the command line, or of the advice to run it with another Python."""
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no second one
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    try:
        from hyvideo_nodes.nodes.cli import main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hyvideo_nodes"):
            raise
        sys.exit(
            f"{sys.executable} has no package {error.name}. Run this with the Python that runs your ComfyUI, or with "
            "the one in .venv that `python3 dev.py demo` makes beside this file"
        )
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(start())
