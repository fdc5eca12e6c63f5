"""The pictures of docs/studio.md, taken of a running studio: `python docs/studio/screenshots.py [http://localhost:8090/]`.

Says how long a curve and a first sound take, too. Needs Playwright and a Chromium (`make test` brings the former).
"""

import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8090/"
HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LAPTOP, TABLET = {"width": 1280, "height": 800}, {"width": 820, "height": 1180}


def main() -> None:
    """Every main state, on a laptop in light and dark, on a tablet."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, options in {
            "light": {"viewport": LAPTOP},
            "dark": {"viewport": LAPTOP, "color_scheme": "dark"},
            "tablet": {"viewport": TABLET, "has_touch": True, "is_mobile": True},
        }.items():
            page = browser.new_page(**options)
            page.goto(ADDRESS)
            if name == "light":
                states(page)
            takes(page, name)
            page.close()
        browser.close()


def states(page: Page) -> None:
    """The beginning, a refusal, a video that is looked at, an empty list of takes, a lost server."""
    page.wait_for_selector("#examples:not([hidden])")
    shoot(page, "start")
    page.set_input_files("#file", {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    page.wait_for_selector("#problem:not([hidden])")
    shoot(page, "refused")
    began = time.monotonic()
    page.get_by_role("button", name="steel", exact=True).click()
    page.wait_for_selector("#work:not([hidden])")
    page.wait_for_timeout(700)
    shoot(page, "looking")
    page.wait_for_selector("#text:focus", timeout=120_000)
    sys.stdout.write(f"from the click on an example to its curve: {time.monotonic() - began:.1f} s\n")
    page.wait_for_timeout(1500)
    page.fill("#text", "a stick hits metal")
    page.fill("#steps", "1000")
    page.click("#generate")
    page.wait_for_timeout(4000)
    shoot(page, "making")
    page.click("#cancel")
    page.route("**/api/takes", lambda route: route.abort())
    page.click("#generate")
    page.wait_for_selector("#problem:not([hidden])")
    shoot(page, "lost")
    page.unroute("**/api/takes")
    page.click("#cancel")
    page.reload()


def takes(page: Page, name: str) -> None:
    """Two takes on one video, the second on a curve that was changed; points to drag, and a region."""
    page.get_by_role("button", name="steel", exact=True).click()
    page.wait_for_selector("#text:focus", timeout=120_000)
    page.fill("#text", "a stick hits metal")
    began = time.monotonic()
    page.click("#generate")
    page.wait_for_selector("#list li", timeout=60_000)
    sys.stdout.write(f"from the click to the first sound: {time.monotonic() - began:.1f} s\n")
    for end, seconds in (("#region-from", "3.60"), ("#region-to", "5.20")):
        page.fill(end, seconds)
        page.keyboard.press("Enter")
    page.click("#louder")
    page.click("#louder")
    page.fill("#text", "a stick hits wood")
    page.fill("#seed", "5")
    page.click("#generate")
    page.wait_for_selector("#list li:nth-child(2)", timeout=60_000)
    page.click("#points")
    page.wait_for_timeout(4500)
    page.click("#play")
    page.evaluate("scrollTo(0, 0)")
    shoot(page, name, full_page=name == "tablet")
    if name == "light":
        page.get_by_role("button", name="Command line of take 1").click()
        shoot(page, "command")


def shoot(page: Page, name: str, full_page: bool = False) -> None:
    page.screenshot(path=HERE / f"{name}.png", full_page=full_page)


if __name__ == "__main__":
    main()
