"""The Python in README.md runs from top to bottom, as its reader would run it."""

import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_python_blocks_run():
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    exec("\n".join(blocks), {})
