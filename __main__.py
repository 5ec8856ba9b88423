"""Front door of the command line: `python PACK_DIRECTORY run GRAPH.json`. ComfyUI never runs this file."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# running a folder puts it on the path, and with it a second name for every module of the pack
sys.path[:] = [str(ROOT / "alias"), *(entry for entry in sys.path if Path(entry or ".").resolve() != ROOT)]

from hyvideo_nodes.nodes.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
