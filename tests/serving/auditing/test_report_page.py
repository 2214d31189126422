"""The report as a browser shows it: quiet, alone, readable by name, in both schemes, on paper and on phones."""

import shutil

import numpy as np
import pytest
from plane import Plane, points

from defended.serving import Attacked, BlackBox, audit

X, Y = points(300)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# WCAG 2.2: contrast of text with what is behind it, 4.5 for normal text.
CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length && c[3] !== 0) return c; }
    return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll('main *')) {
    if (e.closest('svg') || e.closest('[aria-hidden=true]')) continue;
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([e.textContent.trim().slice(0, 40), ratio]);
  }
  return low;
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (on Debian and Ubuntu: apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives Chromium: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        # Its own sandbox needs rights that containers do not give.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with everything, and one of an endpoint that tells next to nothing."""
    folder = tmp_path_factory.mktemp("pages")
    gap = np.abs(X[:, :1] - X[:, 1:])
    pushed = (X - np.minimum(0.49, gap) * np.sign(X[:, :1] - X[:, 1:]) / np.sqrt(2) * [1, -1]).astype("float32")
    full = audit(
        Plane(), X, Y, norm="l2", attacked=Attacked(np.arange(300), pushed), black_box=BlackBox(400),
        conditions={"rejection_rate": {"max": 1.0, "warn": 0.1}, "vra": {"min": 0.99}, "epsilon": {"min": 0.1}},
        baseline=audit(Plane(), X, Y).record(), data_name="three hundred points",
    )  # fmt: skip
    little = audit(Plane(signatures=("serving_default",), told=("label",)), X)
    written = {}
    for name, report in (("full", full), ("little", little)):
        written[name] = folder / f"{name}.html"
        written[name].write_text(report.to_html(), encoding="utf-8")
    return written


@pytest.fixture(params=["full", "little"])
def page(browser, pages, request):
    context = browser.new_context()
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(pages[request.param].as_uri())
    yield page
    context.close()


def test_it_says_nothing_on_the_console_and_asks_nobody(page):
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


def test_it_reads_the_same_without_javascript(browser, pages):
    texts = []
    for enabled in (True, False):
        context = browser.new_context(java_script_enabled=enabled)
        page = context.new_page()
        page.goto(pages["full"].as_uri())
        texts.append(page.inner_text("main"))
        context.close()
    assert texts[0] == texts[1]
    assert "What an attacker can force" in texts[0]


def test_everything_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('img, svg[role=img], [role=img], section, nav, [role=region]')]
          .filter(e => !(e.alt || e.getAttribute('aria-label') || e.querySelector(':scope > title')?.textContent ||
            document.getElementById(e.getAttribute('aria-labelledby'))?.textContent.trim()))
          .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    # The browser's own tree of names, as a screen reader gets it.
    tree = page.locator("main").aria_snapshot()
    assert "heading" in tree
    assert page.get_by_role("heading", level=1).count() == 1
    for table in page.get_by_role("table").all():
        assert table.get_by_role("columnheader").count() > 1
    assert page.get_by_role("status").count() == 1


def test_its_links_lead_somewhere(page):
    targets = page.eval_on_selector_all("a[href^='#']", "links => links.map(link => link.hash.slice(1))")
    assert targets
    for target in targets:
        assert page.locator(f"[id='{target}']").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(page, scheme):
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 3 * 64) == (scheme == "dark")


def test_paper_is_white_whatever_the_screen_is(page):
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST) == []
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_verdict_and_what_is_not_known_are_told(browser, pages):
    page = browser.new_page()
    page.goto(pages["full"].as_uri())
    assert page.get_by_role("status").inner_text().startswith("FAIL")
    assert page.get_by_role("img", name="were forced into rejections").count() == 1
    page.goto(pages["little"].as_uri())
    assert page.get_by_role("status").inner_text().startswith("Not judged")
    assert "100 %" in page.get_by_role("region", name="What this audit cannot tell").inner_text()
    page.close()
