"""What `mdepth-fast predict` costs beside the network: its rate against inference alone, and its memory.

    python benches/predict_video.py CLIP [--model fastdepth] [--repeats 100]

Rate: the clip's frames per second through the whole pipeline against `net.predict` on frames in memory, in turns,
medians. Memory: the peak of a process that predicts the clip, and the clip so many times over, with an input of 64x64
pixels for the network, which is not what is measured.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import torch

from mdepth_fast.inference import StreamOptions, open_sources, predict_source
from mdepth_fast.models import create_model

PEAK = """
import sys
from pathlib import Path
import torch
from mdepth_fast.inference import StreamOptions, open_sources, predict_source
from mdepth_fast.models import create_model
torch.manual_seed(0)
(source,) = open_sources([sys.argv[2]])
options = StreamOptions(Path(sys.argv[3]), ("color",), size=(64, 64))
done = predict_source(create_model(sys.argv[1]), source, options)
# Not getrusage: its peak is that of the process that started this one, if that was larger.
(peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(done.frames, int(peak) / 1024)
"""


def repeated(clip: Path, times: int, path: Path) -> Path:
    """The pictures of a clip, several times over, copied."""
    with av.open(str(path), "w") as target:
        stream, start = None, 0
        for _ in range(times):
            with av.open(str(clip)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = target.add_stream_from_template(video)
                    stream.time_base = video.time_base
                end = start
                for packet in source.demux(video):
                    if packet.size:
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + start, packet.dts + start
                        end = max(end, packet.pts + max(packet.duration or 0, 1))
                        target.mux(packet)
                start = end
    return path


def rates(net: Any, clip: Path, rounds: int) -> None:
    (source,) = open_sources([str(clip)])
    images = [frame.image for frame in source.read(lambda *frame: True)]  # type: ignore[attr-defined]

    def alone() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            for image in images:
                batch = torch.from_numpy(image[None]).permute(0, 3, 1, 2).contiguous().float().div_(255)
                net.predict(batch).depth.numpy()
        return len(images) / (time.perf_counter() - began)

    pure, whole, share = [], [], []
    for _ in range(rounds):
        pure.append(alone())
        with tempfile.TemporaryDirectory() as folder:
            (source,) = open_sources([str(clip)])
            done = predict_source(net, source, StreamOptions(Path(folder), ("color",)))
        whole.append(done.frames / done.wall)
        share.append(done.busy / done.wall)
    ratio = statistics.median(b / a for a, b in zip(pure, whole))
    print(
        f"inference alone {statistics.median(pure):.1f} frames/s, predict {statistics.median(whole):.1f}: {ratio:.1%}"
    )
    print(f"inference runs {statistics.median(share):.1%} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--model", default="fastdepth")
    parser.add_argument("--repeats", type=int, default=100, help="of the clip, for the memory; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.rounds:
            longer = repeated(arguments.clip, 4, Path(folder) / "longer.mp4")
            rates(create_model(arguments.model).eval(), longer, arguments.rounds)
        for times in (1, arguments.repeats)[: 1 + (arguments.repeats > 0)]:
            clip = repeated(arguments.clip, times, Path(folder) / f"{times}.mp4")
            words = [sys.executable, "-c", PEAK, arguments.model, str(clip), str(Path(folder) / str(times))]
            frames, peak = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
            print(f"{frames} frames: at most {float(peak):.0f} MiB")


if __name__ == "__main__":
    main()
