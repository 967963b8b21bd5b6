"""What the package takes to start, in processes of their own, in turn with torch alone."""

import subprocess
import sys

COMMANDS = {
    "torch": ["-c", "import torch"],
    "with mdepth_fast": ["-c", "import torch, mdepth_fast, mdepth_fast.ops, mdepth_fast.losses"],
    "mdepth-fast --help": ["-m", "mdepth_fast", "--help"],
}


def test_startup(in_turn, tmp_path):
    def start(words):
        subprocess.run([sys.executable, *words], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)

    in_turn("startup", "1 process", {name: lambda words=words: start(words) for name, words in COMMANDS.items()})
