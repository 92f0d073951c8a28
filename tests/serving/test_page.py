"""The page in a real browser: upload, microphone, errors, keyboard, narrow and dark windows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from helpers.browser import Page, browser, program
from helpers.predictor_case import save_predictor
from helpers.serving_case import TOKEN, LoudIsSpeech, http_server

from multistill import Predictor
from multistill.inference import streaming
from multistill.inference.stream_settings import StreamSettings
from multistill.inference.streaming import StreamingPredictor

DEMO = files("multistill.corpora") / "data" / "demo-session01.ogg"
CHOOSE_WEBM = """(async () => {
  const context = new AudioContext();
  const tone = context.createOscillator();
  const into = context.createMediaStreamDestination();
  tone.connect(into);
  tone.start();
  const recorder = new MediaRecorder(into.stream);
  const parts = [];
  recorder.ondataavailable = ({data}) => parts.push(data);
  const stopped = new Promise((done) => { recorder.onstop = done; });
  recorder.start();
  await new Promise((done) => setTimeout(done, 1000));
  recorder.stop();
  await stopped;
  const files = new DataTransfer();
  files.items.add(new File(parts, "made.webm"));
  document.getElementById("file").files = files.files;
  document.getElementById("file").dispatchEvent(new Event("change"));
})()"""
LOSE_TWO_REQUESTS = """
var lost = 0;
PAUSES_MS.fill(10);
const connected = window.fetch;
window.fetch = (url, request) => {
  if (lost === 2 || !String(url).endsWith("predict")) return connected(url, request);
  lost += 1;
  if (lost === 1) return Promise.reject(new TypeError("Failed to fetch"));
  return Promise.resolve(new Response("Internal Server Error", {status: 500}));
};
0"""
needs_browser = pytest.mark.skipif(program() is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of a packaged recording with pauses."""
    samples, rate = soundfile.read(str(DEMO), stop=4 * 16_000)
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    pause = np.zeros(rate)
    soundfile.write(path, np.concatenate([pause / 2, samples[: 2 * rate], pause]), rate)
    return path


@pytest.fixture
def page(
    tmp_path: Path, recording: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Page, str]]:
    monkeypatch.setattr(streaming, "SileroVoiceActivity", LoudIsSpeech)
    options = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}",
    )
    with http_server(predictor, TOKEN) as address, browser(tmp_path, options) as opened:
        opened.look(width=1000, height=900)
        opened.open(address)
        opened.wait(f"document.getElementById('model').textContent.includes('{predictor.name}')")
        yield opened, address


def shown(page: Page) -> dict[str, str]:
    """The first class of the result and its share."""
    name, share = page.evaluate("document.getElementById('label').textContent").split(", ")
    return {"label": name, "share": share}


def wanted(predictor: Predictor, path: Path) -> dict[str, str]:
    prediction = predictor.predict(path)
    assert prediction.label is not None
    return {
        "label": prediction.label,
        "share": f"{round(100 * prediction.distribution[prediction.label])} %",
    }


@needs_browser
def test_a_person_uses_the_page(
    page: tuple[Page, str], recording: Path, predictor: Predictor
) -> None:
    opened, address = page
    status = "document.getElementById('status').textContent"
    opened.choose("#file", recording)
    opened.wait(f"{status}.includes('wants a token')")
    assert opened.errors.pop().startswith("Failed to load resource: the server responded with a st")

    opened.evaluate(f"document.getElementById('token').value = '{TOKEN}'")
    opened.evaluate("document.getElementById('file').value = ''")
    opened.choose("#file", recording)
    opened.wait(f"{status} === 'clip.wav is predicted.'")
    assert shown(opened) == wanted(predictor, recording)
    samples, rate = soundfile.read(recording, dtype="int16")
    streamed = StreamingPredictor(predictor, StreamSettings(), rate=rate)
    events = [*streamed.push(samples), *streamed.finish()]
    finals = [event for event in events if isinstance(event, streaming.Final)]
    kept = streaming.Interim | streaming.Final  # a provisional prediction makes room for the next
    rows = sum(isinstance(event, kept) for event in events)
    opened.wait(f"document.querySelectorAll('#rows tr').length === {rows}")
    opened.wait(f"document.querySelectorAll('#curve .name').length === {len(finals)}")

    for width, dark in ((360, False), (360, True), (1000, True), (1000, False)):
        opened.look(width=width, height=900, dark=dark)
        opened.wait(f"innerWidth === {width}")
        assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        for selector in ("body", "#record", ".soft", "a"):
            assert contrast(opened, selector) >= 4.5, (selector, dark)

    names = names_by_role(opened)
    assert "" not in [name for found in names.values() for name in found], names
    assert "Record" in names["button"] and "Predictions over time" in names["region"]
    assert names["textbox"] == ["Token of this server", "What is said (optional)"]
    assert names["image"][0].endswith(" s."), "the curve is told in words"

    opened.evaluate("document.getElementById('record').focus()")
    for kind in ("keyDown", "keyUp"):
        opened.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r",
                    windowsVirtualKeyCode=13)  # fmt: skip
    pressed = "document.getElementById('record').getAttribute('aria-pressed')"
    opened.wait(f"{pressed} === 'true'")
    opened.wait("document.querySelectorAll('#rows tr').length > 2")
    opened.evaluate("document.getElementById('record').click()")
    opened.wait(f"{status} === 'The recording is predicted.'")
    assert shown(opened)["label"] in predictor.labels
    assert opened.evaluate("document.getElementById('player').src").startswith("blob:")

    opened.evaluate(CHOOSE_WEBM)
    opened.wait(f"{status}.startsWith('made.webm is predicted')")
    notes = "document.getElementById('notes').textContent"
    assert "decoded by the browser" in opened.evaluate(notes)
    assert "Failed to load resource" in opened.errors.pop()  # 415: the server does not read WebM

    opened.open(f"{address}/docs")
    opened.wait("document.getElementById('paths').innerText.includes('POST /predict')")
    assert opened.errors == []
    asked = {urlsplit(url).netloc for url in opened.requests if "//" in url and url[:5] != "blob:"}
    assert asked == {urlsplit(address).netloc}


@needs_browser
def test_a_model_of_dimensions_draws_lines(
    tmp_path: Path, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SileroVoiceActivity", LoudIsSpeech)
    spec = {"num_classes": 0, "dimensions": ("valence", "arousal")}
    predictor = Predictor.load(save_predictor(tmp_path / "model", spec=spec), "cpu")
    with http_server(predictor) as address, browser(tmp_path / "browser") as opened:
        opened.open(address)
        opened.wait("!document.getElementById('text-part').hidden")
        opened.evaluate(LOSE_TWO_REQUESTS)
        opened.choose("#file", recording)
        opened.wait("document.querySelectorAll('#curve polyline').length >= 2")
        wanted = predictor.predict(recording).dimensions
        bars = opened.evaluate("document.getElementById('bars').innerText")
        for name, value in wanted.items():
            assert re.search(rf"{name}\s+{value:.1f}", bars), bars
        assert opened.evaluate("lost") == 2
        assert "valence" in opened.evaluate("document.getElementById('rows').textContent")
        assert opened.errors == []


def names_by_role(page: Page) -> dict[str, list[str]]:
    """What a screen reader hears of controls and pictures."""
    page.evaluate("document.querySelector('details').open = true")
    found: dict[str, list[str]] = {}
    for node in page.call("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value", "")
        if role in ("button", "textbox", "link", "image", "region") and not node["ignored"]:
            found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    return found


def contrast(page: Page, selector: str) -> float:
    """WCAG 2.2, 1.4.3: the ratio of the luminances of text and background."""
    colours = page.evaluate(
        f"""(() => {{
          let node = document.querySelector('{selector}');
          const front = getComputedStyle(node).color;
          while (getComputedStyle(node).backgroundColor === 'rgba(0, 0, 0, 0)')
            node = node.parentElement;
          return [front, getComputedStyle(node).backgroundColor];
        }})()"""
    )
    lighter, darker = sorted((luminance(colour) for colour in colours), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["page.html", "docs.html"])
def test_every_control_has_a_name_and_nothing_is_loaded(name: str) -> None:
    text = (files("multistill.serving") / "pages" / name).read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:|docs|openapi\.json|\.\")", text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "style=" not in text and " onclick=" not in text, "the policy forbids them"
    for control in re.findall(r"<input id=\"([a-z]+)\"", text):
        assert f'<label for="{control}">' in text
    assert '<html lang="en">' in text
