"""Runs the Python of the pages beside this file, each from top to bottom, and writes their figures here.

Give it names of pages, as in `python docs/learn/run.py stereo silog`, or nothing for all of them.
"""

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    os.chdir(HERE)
    for name in sys.argv[1:] or sorted(path.stem for path in HERE.glob("*.md")):
        text = Path(f"{name}.md").read_text()
        names: dict[str, object] = {}
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            above = "\n" * text.count("\n", 0, block.start(1))  # an error names the line of the page
            exec(compile(above + block[1], f"{name}.md", "exec"), names)


if __name__ == "__main__":
    main()
