"""Draws the README's picture: `python benches/readme_picture.py [RUN]`, from a run of `mdepth-fast train motorcycle`.

Without a run it trains one.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from mdepth_fast.files import replacing
from mdepth_fast.inference import load_trained
from mdepth_fast.systems import load_config, system_of
from mdepth_fast.training.run import train
from mdepth_fast.visualize import draw_panel

PICTURE = Path(__file__).parents[1] / "docs" / "prediction.png"
WIDTH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="run folder (default: a new one, which is deleted)")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as temporary:
        if run is None:
            result = train(load_config("motorcycle", [f"--output={temporary}"]), say=print)
            assert result is not None
            run = result.folder
        draw(run)


def draw(run: Path) -> None:
    trained = load_trained(run)
    kind = system_of(trained.config)
    sample = kind.evaluation_data(trained.config)[0]
    system = kind.create(trained.config, kind.training_data(trained.config))
    system.net.load_state_dict(trained.net.state_dict())
    with torch.inference_mode():
        cells = list(system.eval().panel(sample))[:3]  # image, prediction, ground truth
    with tempfile.TemporaryDirectory() as temporary:
        large = Path(temporary) / "panel.png"
        draw_panel(large, cells)
        with Image.open(large) as picture, replacing(PICTURE) as small:
            height = round(picture.height * WIDTH / picture.width)
            colors = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
            colors.quantize(256).save(small, format="png", optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
