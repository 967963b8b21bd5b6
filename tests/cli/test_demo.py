"""The page of `mdepth-fast demo` in a real browser: what a user sees, and whom the page talks to."""

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from mdepth_fast.cli import main
from mdepth_fast.models import create_model

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
WAIT = 60  # seconds, at most

# Without a GPU, WebGL is drawn by the processor.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--window-size=1300,1400"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a page with one network, and the folder of its files."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio: not installed")
    folder = tmp_path_factory.mktemp("demo")
    create_model("fastdepth", unit="m").save_pretrained(folder / "net")
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "mdepth_fast", "demo", str(folder / "net"), "--port=0", "--max-megabytes=1"]
    command.append("--device=cpu")
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            line = demo.stdout.readline()
            address = re.match(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line + demo.communicate(timeout=WAIT)[1]
            yield address[0], folder
        finally:
            demo.send_signal(signal.SIGINT)
            _, errors = demo.communicate(timeout=WAIT)
    assert (demo.returncode, errors, [*(folder / "tmp").glob("mdepth-fast-*")]) == (0, "", [])


@pytest.fixture(scope="module")
def browser(page: tuple[str, Path]) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium: no chromium with chromedriver on the PATH")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("chromium: no selenium to drive it")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={page[1] / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get_log("performance")  # of the browser's own first page
        yield driver
    finally:
        driver.quit()


def found(browser: Any, selector: str) -> list[Any]:
    from selenium.webdriver.common.by import By

    elements: list[Any] = browser.find_elements(By.CSS_SELECTOR, selector)
    return elements


def wait(browser: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, poll_frequency=0.1).until(condition)


def upload(browser: Any, address: str, path: Path) -> None:
    browser.get(address)
    (file,) = wait(browser, lambda browser: found(browser, "#image input[type=file]"))
    file.send_keys(str(path))


# The colours of a picture on the page, as the browser decodes it.
PIXELS = """
const image = arguments[0], canvas = document.createElement('canvas');
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);
return [canvas.width, canvas.height, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)];
"""


def pixels(browser: Any, image: Any) -> np.ndarray:
    width, height, values = browser.execute_script(PIXELS, image)
    return np.array(values).reshape(height, width, 4)[..., :3]


def drawn(canvas: Any) -> bool:
    """Whether there is anything in the middle of it, away from labels and buttons."""
    seen = np.array(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("L"))
    height, width = seen.shape
    return bool(seen[height // 4 : -height // 4, width // 4 : -width // 4].std() > 1)


def test_upload_and_see_depth(browser: Any, page: tuple[str, Path]) -> None:
    """Picture, depth, point cloud and files appear; no error in the console, no request to another host."""
    address, folder = page
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(picture).save(folder / "picture.png")
    upload(browser, address, folder / "picture.png")
    wait(browser, lambda browser: found(browser, "#image img"))
    found(browser, "#predict")[0].click()
    images = wait(browser, lambda browser: (two := found(browser, "#depth img"))[1:] and two)
    wait(browser, lambda browser: all(image.get_property("naturalWidth") for image in images))
    shown, depth = (pixels(browser, image) for image in images)
    assert shown.shape == depth.shape == picture.shape
    assert np.abs(shown - picture.astype(int)).mean() < 20  # WebP loses some
    assert depth.std() > 5 and np.abs(depth - shown).mean() > 20
    wait(browser, lambda browser: (canvas := found(browser, "#cloud canvas")) and drawn(canvas[0]))
    text = found(browser, "#about")[0].text
    assert "64 x 48 pixels: depth in m" in text and "Camera: assumed, 60 degrees" in text
    links = [link.get_attribute("href") for link in wait(browser, lambda browser: found(browser, "#files a[href]"))]
    names = {Path(urlsplit(link).path).name for link in links}
    assert names == {f"picture_depth.{suffix}" for suffix in ("png", "npy", "npy.json", "ply")}

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    requests = [urlsplit(url) for url in urls if not url.startswith(("data:", "blob:", "chrome:"))]
    hosts = {request.hostname for request in requests}
    assert hosts == {"127.0.0.1"}
    assert any(request.path.endswith("cloud.glb") for request in requests)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_what_cannot_be_taken_is_said_on_the_page(browser: Any, page: tuple[str, Path]) -> None:
    address, folder = page
    (folder / "none.png").write_text("no picture")
    upload(browser, address, folder / "none.png")
    wait(browser, lambda browser: found(browser, "#image img"))
    found(browser, "#predict")[0].click()
    said = "image: expected a picture such as JPEG or PNG, this file cannot be read as one"
    wait(browser, lambda browser: said in found(browser, "body")[0].text)
    assert "Traceback" not in browser.page_source and str(folder) not in found(browser, "body")[0].text
    (folder / "large.png").write_bytes(bytes(2**20 + 1))
    upload(browser, address, folder / "large.png")
    wait(browser, lambda browser: re.search("exceed|too large|maximum", found(browser, "body")[0].text))


def test_a_missing_package_and_other_hosts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, words in {"gradio": ["demo", "x"], "rerun": ["view", "x", "--weights=x"]}.items():
        monkeypatch.setitem(sys.modules, package, None)
        assert main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.fullmatch(rf'mdepth-fast: error: {package}, .*: pip install "mdepth-fast\[{words[0]}\]"', line)
    monkeypatch.setitem(sys.modules, "gradio", sys)
    assert main(["demo", str(tmp_path / "none"), "--host=0.0.0.0", "--port=0"]) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert "--host 0.0.0.0: whoever reaches this machine can use the page, there is no password" in warning
    assert "none" in error
