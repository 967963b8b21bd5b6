"""A page in the browser for trying networks on one's own pictures: depth, point cloud, files."""

import errno
import logging
import shutil
import socket
import sys
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.intrinsics import ASSUMED_VIEW, implausible_intrinsics, intrinsics_from_view
from mdepth_fast.data.samples import DataError, open_image, upright_rgb
from mdepth_fast.inference.trained import predict_image
from mdepth_fast.inference.writers import point_cloud, write_glb, write_map
from mdepth_fast.kinds import describe, is_inverse
from mdepth_fast.visualize import colorize

__all__ = ["Demo", "Shown", "bind", "serve"]

_SCALE = 256.0  # of the PNG
_FLYING = 0.05  # of the point cloud, see `write_map`
_POINTS = 200_000  # that a browser turns at ease
_KEPT = 8  # predictions whose files stay

# The browser itself refuses what the page might ask another host for.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)

# Where a browser has WebGPU and no device for it, the point cloud falls back to WebGL, after errors in the console.
_WEBGL = "<script>delete Navigator.prototype.gpu</script>"


@dataclass(frozen=True)
class Shown:
    """What the page shows of one prediction: two RGB pictures uint8 (H, W, 3), a GLB or None, files, a text."""

    image: NDArray[np.uint8]
    colors: NDArray[np.uint8]
    cloud: Path | None
    files: tuple[Path, ...]
    text: str


class Demo:
    """Predicts for the page, one image at a time; files of the last few predictions stay in `folder`.

    nets: `DepthModel`s by name. pixels: largest image. size: of the networks' input, see `DepthModel.predict`.
    """

    def __init__(
        self, nets: Mapping[str, Any], folder: Path, *, pixels: int = 25_000_000, size: tuple[int, int] | None = None
    ) -> None:
        self.nets, self.folder, self.pixels, self.size = dict(nets), folder, pixels, size
        self._kept: deque[Path] = deque()
        self._one = threading.Lock()

    def predict(self, path: Path, name: str, view: float | None = ASSUMED_VIEW, camera: str = "") -> Shown:
        """The prediction of the network `name` for an image file.

        view: horizontal angle of view in degrees. camera: "fx, fy, cx, cy" in pixels of the image, which goes first;
        networks that take a camera are given this one, never the one of an assumed angle. `DataError` or ValueError
        for an image that is none or too large, and for a wrong camera.
        """
        if name not in self.nets:
            raise ValueError(f"model: expected one of {', '.join(self.nets)}, got {name!r}")
        image = self._read(path)
        height, width = image.shape[:2]
        K = _camera(camera)
        with self._one, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the camera; the text below has it
            map = predict_image(self.nets[name], image, K=K, size=self.size)
            lines = [f"**{name}**, {width} x {height} pixels: {describe(map.kind)}."]
            if map.kind == "metric":
                lines[0] += " It suits cameras like that of the training."
            about = "given"
            if K is None:
                if view is None:
                    raise ValueError("angle of view: expected a number of degrees, got none")
                K = intrinsics_from_view(view, height, width)
                about = f"**assumed**, {view:g} degrees from left to right; another angle bends the point cloud"
            if is_inverse(map.kind):
                lines.append(f"No point cloud: {describe(map.kind)} is not depth.")
            else:
                lines.append(
                    f"Camera: {about}. fx = fy = {K[0, 0]:.4g} pixels." if about != "given" else "Camera: given."
                )
                if problem := implausible_intrinsics(K, height, width):
                    lines.append(f"It may be wrong: {problem}.")
            folder = self._new_folder()
            stem = folder / (Path(path).stem[:60] or "image")
            map = replace(map, K=K, image=image)
            files = [stem.with_name(f"{stem.name}_depth.{format}") for format in ("png", "npy", "ply")]
            clamped = write_map(files[0], map, format="png", scale=_SCALE)
            if clamped:
                lines.append(f"PNG: {clamped} values are outside of 16 bits and were clamped; the npy has them.")
            write_map(files[1], map, format="npy")
            files.insert(2, files[1].with_name(f"{files[1].name}.json"))
            cloud = None
            if is_inverse(map.kind):
                files.pop()
            else:
                write_map(files[3], map, format="ply", flying=_FLYING)
                cloud = self._cloud(folder / "cloud.glb", map)
                if cloud is None:
                    lines.append("No point cloud: there is no valid depth away from edges.")
        return Shown(image, colorize(map.values, kind=map.kind), cloud, tuple(files), "\n\n".join(lines))

    def _read(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image

        limit = f"{self.pixels / 1e6:g} million pixels"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with open_image(path) as file:
                    width, height = file.size  # of the header: nothing is decoded yet
                    if width * height <= self.pixels:
                        return upright_rgb(file)
        except DataError as error:
            if isinstance(error.__cause__, Image.DecompressionBombError):
                raise DataError(f"image: expected at most {limit}, got far more") from error
            raise DataError("image: expected a picture such as JPEG or PNG, this file cannot be read as one") from error
        raise DataError(f"image: expected at most {limit}, got {width} x {height}")

    def _new_folder(self) -> Path:
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        self._kept.append(folder)
        while len(self._kept) > _KEPT:
            shutil.rmtree(self._kept.popleft(), ignore_errors=True)
        return folder

    def _cloud(self, path: Path, map: Any) -> Path | None:
        """The point cloud that the page shows, without the farthest points, which would make the rest small."""
        points, colours = point_cloud(map, flying=_FLYING, most=_POINTS)
        assert colours is not None
        if not len(points):
            return None
        near = points[:, 2] <= np.percentile(points[:, 2], 98)
        write_glb(path, points[near] - [0, 0, np.median(points[:, 2])], colours[near])
        return path


def _camera(text: str) -> NDArray[np.float64] | None:
    if not text.strip():
        return None
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ValueError(f"camera: expected fx, fy, cx, cy in pixels, got {text.strip()[:80]!r}")
    return read_intrinsics(numbers)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there, port 0 for any that is free. OSError in one line where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise OSError(f"--host: cannot use {host!r} ({error.strerror})") from error
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"--port: {port} is in use on {host}, give another one") from error
        raise OSError(f"--host, --port: cannot listen on {host}, port {port} ({error.strerror})") from error
    return found


def serve(demo: Demo, listening: socket.socket, *, megabytes: int = 20) -> None:
    """Shows the page until it is interrupted. megabytes: largest upload."""
    import gradio
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    gradio.mount_gradio_app(
        app,
        _page(demo),
        path="/",
        max_file_size=megabytes * 2**20,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        run_history=False,
        footer_links=[],
        show_error=False,
        head=_WEBGL,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="on")
    server = uvicorn.Server(config)
    # Pages that are still open when it ends are cut off, which is no error.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run(sockets=[listening])


def _page(demo: Demo) -> Any:
    import gradio as gr

    def show(upload: Any, name: Any, view: Any, camera: Any) -> tuple[Any, ...]:
        path = upload.get("path") if isinstance(upload, dict) else None
        if not path:
            raise gr.Error("image: expected a picture, got none", print_exception=False)
        try:
            shown = demo.predict(Path(path), name, view, camera or "")
        except ValueError as error:
            raise gr.Error(" ".join(str(error).split()), duration=None, print_exception=False) from None
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"mdepth-fast: error: {text}", file=sys.stderr, flush=True)
            raise gr.Error(f"The prediction failed: {type(error).__name__}", print_exception=False) from None
        cloud = None if shown.cloud is None else str(shown.cloud)
        return (shown.image, shown.colors), shown.text, cloud, [str(path) for path in shown.files]

    names = list(demo.nets)
    # The files that it keeps of uploads and answers go after an hour.
    with gr.Blocks(title="mdepth_fast", analytics_enabled=False, delete_cache=(600, 3600), fill_width=True) as page:
        gr.Markdown("## Depth from one image")
        with gr.Row():
            with gr.Column(scale=2):
                image = gr.Image(
                    label="Image",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    height=320,
                    elem_id="image",
                )
                model = gr.Dropdown(names, value=names[0], label="Model")
                view = gr.Number(
                    ASSUMED_VIEW,
                    label="Horizontal angle of view, in degrees (an assumption)",
                    info="For the point cloud. An image does not tell it; phones have 55 to 75.",
                    minimum=1,
                    maximum=170,
                )
                camera = gr.Textbox(
                    label="Or the camera: fx, fy, cx, cy",
                    info="In pixels of the image, if you know it. Used instead of the angle.",
                    max_length=200,
                )
                button = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=3):
                slider = gr.ImageSlider(label="Image and depth: near is bright", interactive=False, elem_id="depth")
                text = gr.Markdown(elem_id="about")
                cloud = gr.Model3D(label="Point cloud: drag to turn", interactive=False, elem_id="cloud", height=420)
                files = gr.Files(
                    label="Files: 16-bit PNG, npy with its description, PLY", interactive=False, elem_id="files"
                )
        button.click(
            show,
            [image, model, view, camera],
            [slider, text, cloud, files],
            preprocess=False,  # an upload may be no image, and `Demo` says so
            concurrency_limit=1,
            api_visibility="private",
        )
    page.queue(max_size=16)
    return page
