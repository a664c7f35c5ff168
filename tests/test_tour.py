"""The cells of examples/tour.ipynb run one after the other; CI executes the notebook itself."""

import json
from pathlib import Path

from conftest import REPOSITORY
from forked import Forks

NOTEBOOK = REPOSITORY / "examples" / "tour.ipynb"


def test_the_cells_run(forks: Forks, tmp_path: Path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "hub_configs").symlink_to(REPOSITORY / "hub_configs")
    printed = forks.run(tmp_path, code)
    assert "EncodzallForMaskedDenoising" in printed and "'eval_bits_per_byte'" in printed and "|" in printed
