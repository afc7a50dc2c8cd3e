"""The book that `make book` builds: every link leads somewhere, and every page is right in a browser, wide and narrow.

The browser's part needs Chromium (``apt-get install chromium``) and playwright; without them it is skipped.
"""

import functools
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import sync_badges

filelock = pytest.importorskip("filelock")
ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PAGES = ["index", "api", *(f"notebooks/{chapter}" for chapter in CHAPTERS)]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def book(tmp_path_factory, testrun_uid):
    """The folder of the site, built by `make book`, once for all of pytest-xdist's processes."""
    build = tmp_path_factory.getbasetemp().parent / f"book-{testrun_uid}"
    command = ["make", "book", "--old-file=.venv/installed", f"BIN={Path(sys.executable).parent}", f"BUILD={build}"]
    with filelock.FileLock(f"{build}.lock"):
        if not (build / "done").exists():
            result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
            assert result.returncode == 0, result.stderr
            (build / "done").touch()
    return build / "book"


class Page(HTMLParser):
    """What a page links to, shows and can be linked at."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.links += [attributes[name] for name in ("href", "src") if name in attributes and tag in ("a", "img")]


def broken_links(path, pages):
    """The links and pictures of a page that lead to no file, or to no anchor of a page."""
    for link in pages[path].links:
        address, anchor = urldefrag(link)
        if ":" in address:
            continue
        target = (path.parent / unquote(address)).resolve() if address else path
        if not target.exists() or (anchor and target in pages and unquote(anchor) not in pages[target].ids):
            yield link


def test_every_internal_link_leads_somewhere(book):
    pages = {path.resolve(): Page(path) for path in book.rglob("*.html")}
    assert len(pages) > len(PAGES)
    assert {path.name: broken for path in pages if (broken := list(broken_links(path, pages)))} == {}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_opens_on_colab_and_binder_and_leads_to_the_next(book, chapter):
    links = Page(book / "notebooks" / f"{chapter}.html").links
    owner_and_name = sync_badges.repository()
    colab, _ = sync_badges.places(f"{chapter}.ipynb", owner_and_name)
    assert links.count(colab) == 2  # the chapter's own link and the button of the page
    assert f"https://mybinder.org/v2/gh/{owner_and_name}/main?urlpath=lab/tree/notebooks/{chapter}.ipynb" in links
    following = CHAPTERS[CHAPTERS.index(chapter) + 1 :][:1]
    assert all(f"{name}.html" in links for name in following)


NAMES = [
    *("OPTBackbone", "causal_lm", "layers.DecoderLayer", "masks.padding_mask", "presets.parameter_count"),
    *("tokens.tokenize_batch", "plot.heads", "attention_numbers.entropy", "report.watched", "compare.sweep"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_package_is_documented(book, name):
    text = (book / "api.html").read_text(encoding="utf-8")
    assert re.search(rf'id="optbook.{name}">.*?</dt>\s*<dd><p>\w', text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(book):
    """The address of the book, served on this machine."""
    handler = functools.partial(QuietHandler, directory=book)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def page(browser, site):
    """A page; when the test ends, it has had no error and asked no other machine for anything."""
    troubles = []
    context = browser.new_context()
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
    page.on("request", lambda one: one.url.startswith((site, "data:", "blob:")) or troubles.append(one.url))
    yield page
    context.close()
    assert troubles == []


@pytest.mark.parametrize("name", PAGES)
def test_every_page_in_a_browser(site, page, name):
    page.goto(f"{site}/{name}.html")
    for screen, width in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"scrolls sideways: {screen}"
        figures = page.locator("article img").evaluate_all("all => all.map(one => one.naturalWidth && one.clientWidth)")
        assert all(figures), f"a figure cannot be seen: {screen}"
    assert figures or name == "api"


def test_search_finds_a_chapter(site, page):
    page.goto(f"{site}/search.html?q=padding")
    results = page.locator("#search-results li a")
    results.first.wait_for()
    assert any("Masks" in result for result in results.all_inner_texts())
