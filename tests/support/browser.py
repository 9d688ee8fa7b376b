"""Program that opens a page in headless Chromium and prints its findings as JSON.

Usage: python -m tests.support.browser CHROMIUM PAGE AXE

It is a process of its own, because Playwright starts its driver with asyncio (tests/support/processes.py).
"""

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (360, 768, 1440)
SCHEMES = ("light", "dark")

_OVERFLOWING = """
    () => [...document.querySelectorAll("body *")]
      .filter(element => {
        const box = element.getBoundingClientRect();
        return box.width > 1 && (box.right > innerWidth + 1 || box.left < -1);
      })
      .map(element => element.outerHTML.slice(0, 200))"""
_VIOLATIONS = """
    async () => (await axe.run()).violations
      .map(({id, nodes}) => ({id, nodes: nodes.map(({html, failureSummary}) => [html, failureSummary])}))"""


def _inspect(browser: Browser, address: str, axe: str, width: int, scheme: Any) -> dict[str, Any]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.goto(address)
    found = {
        "width": width,
        "scheme": scheme,
        "scroll_width": page.evaluate("document.documentElement.scrollWidth"),
        "overflowing": page.evaluate(_OVERFLOWING),
        "background": _background(page),
        "text": page.inner_text("body"),
        "requests": requests,
        "messages": messages,
    }
    page.evaluate(axe)
    found["violations"] = page.evaluate(_VIOLATIONS)
    page.emulate_media(media="print")
    found["printed_background"] = _background(page)
    page.close()
    return found


def _background(page: Page) -> Any:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def main(chromium: str, file: str, axe: str) -> None:
    script = Path(axe).read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # root cannot use the sandbox
        inspections = [_inspect(browser, f"file://{file}", script, width, scheme) for width in WIDTHS for scheme in SCHEMES]
        browser.close()
    print(json.dumps(inspections))


if __name__ == "__main__":
    main(*sys.argv[1:])
