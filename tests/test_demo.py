"""Every tab of examples/demo.py answers in a headless browser. Needs the extra `demo`, playwright and Chromium."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 60_000  # ms, for what the page shows
pytestmark = pytest.mark.slow


@pytest.fixture
def address(tmp_path: Path):
    """Of the demo, with the models that ship."""
    pytest.importorskip("gradio", reason="needs an extra: pip install 'latentlm[demo]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, str(REPOSITORY / "examples" / "demo.py")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY)
    try:
        for _ in range(240):
            assert process.poll() is None, (tmp_path / "log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_every_tab_answers(address: str):
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 620})
        page.goto(address, timeout=WAIT)
        for name, output in (("FSQ tokenizer", "tokens"), ("Abstractinator", "segments"), ("EncodZall", "repaired")):
            page.get_by_role("tab", name=name).click()
            panel = page.get_by_role("tabpanel").filter(visible=True).first
            panel.get_by_role("button", name="Submit").click()
            if output == "repaired":
                api.expect(panel.get_by_label(output)).to_have_value(re.compile("The bridge would"), timeout=WAIT)
            else:
                panel.locator(".token-container").nth(3).wait_for(timeout=WAIT)
        if "LATENTLM_SCREENSHOT" in os.environ:
            page.screenshot(path=os.environ["LATENTLM_SCREENSHOT"])
        browser.close()
