"""optbook.view in a real browser: as a saved page, in an exported notebook, in JupyterLab.

Needs Chromium (``apt-get install chromium``) and playwright; without them these tests are skipped. JupyterLab and
Chromium talk over the loopback interface only.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
from nbformat.sign import NotebookNotary
from view_records import HOSTILE, make_record

import optbook
from optbook.tokens import visible

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

VIEW = ".optbook-view"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Opens pages; when the test ends, none of them may have had an error."""
    contexts, errors = [], []

    def note_error(message):
        if message.type == "error" and not message.text.startswith("Failed to load resource"):  # requests: see below
            errors.append(message.text)

    def open_page(url=None, **options):
        contexts.append(browser.new_context(**{"color_scheme": "light", **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note_error)
        if url:
            page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == [], errors


@pytest.fixture
def record():
    return make_record()


def saved(record, folder):
    path = folder / "page.html"
    optbook.view(record).save(path)
    return path.as_uri()


def notebook_of(*views):
    """A notebook with one executed cell, which has shown the given views."""
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": view._repr_html_(), "text/plain": repr(view)})
        for view in views
    ]
    cell = nbformat.v4.new_code_cell("optbook.view(record)", outputs=outputs, execution_count=1)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})


def exported(folder, name, *views):
    nbconvert = pytest.importorskip("nbconvert")
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook_of(*views))
    path = folder / name
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


def thumbnail(view, layer, head):
    return view.get_by_role("button", name=f"layer {layer}, head {head}", exact=True)


def chips(view):
    """The tokens of the text, to be chosen."""
    return view.get_by_role("listbox", name="tokens").get_by_role("option")


def shown_shares(view, which):
    """The percentages under the text: ``which`` is 0 for where a token looks, 1 for who looks at it."""
    return view.locator(".ob-line").nth(which).locator(".ob-share").all_inner_texts()


def assert_shown(texts, shares, visible):
    for text, share, seen in zip(texts, shares, visible, strict=True):
        if not seen:
            assert text == "–"
        elif text == "<1%":
            assert 0 < share < 0.005
        else:
            assert abs(float(text.removesuffix("%")) / 100 - share) <= 0.00501


def assert_token_shown(view, attention, position):
    """Its row of the map over the past, its column over the future; both hold the token itself."""
    others = np.arange(len(attention))
    assert_shown(shown_shares(view, 0), attention[position], others <= position)
    assert_shown(shown_shares(view, 1), attention[:, position], others >= position)


def explore(page, view, record):
    """Mouse, then keyboard: enlarge heads, look at tokens and cells; every number must be the record's."""
    attention = record.map(1, 3)
    thumbnail(view, 1, 3).click()
    readout = view.get_by_role("status")
    for position in range(5):
        chips(view).nth(position).hover()
        assert_token_shown(view, attention, position)
    view.locator(".ob-rows .ob-label").nth(2).hover()
    assert_token_shown(view, attention, 2)
    view.locator(".ob-columns .ob-label").nth(1).hover()
    assert_token_shown(view, attention, 1)
    cells = view.locator(".ob-cells canvas")
    size = cells.bounding_box()["width"] / 5
    cells.hover(position={"x": 1.5 * size, "y": 3.5 * size})
    expected = f"␣sat (position 3) looks at The (position 1): {100 * attention[3, 1]:.1f}%."
    assert readout.inner_text() == expected

    view.get_by_role("button", name="all heads").click()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")  # no further than the last head
    assert focused_name(view) == "layer 2, head 5"
    page.keyboard.press("Home")
    assert focused_name(view) == "layer 2, head 0"
    page.keyboard.press("Enter")
    attention = record.map(2, 0)
    assert_token_shown(view, attention, 3)  # where the mouse had been
    page.keyboard.press("Home")
    assert_token_shown(view, attention, 0)
    page.keyboard.press("ArrowRight")
    assert_token_shown(view, attention, 1)
    assert view.locator(".ob-chip:focus").inner_text().startswith("The")
    page.keyboard.press("Tab")  # from the text to the map
    page.keyboard.press("ArrowDown")
    assert readout.inner_text().endswith(f"looks at The (position 1): {100 * attention[2, 1]:.1f}%.")
    page.keyboard.press("Escape")
    assert focused_name(view) == "layer 2, head 0"
    page.keyboard.press("Space")
    assert chips(view).first.is_visible()
    page.keyboard.press("Escape")


def focused_name(view):
    return view.locator("button:focus").get_attribute("aria-label")


def test_saved_page(new_page, record, tmp_path):
    url = saved(record, tmp_path)
    page = new_page(url)
    explore(page, page.locator(VIEW), record)
    assert page.requested == [url]


def test_two_views_in_an_exported_notebook(new_page, record, tmp_path):
    other = make_record(seed=1)
    page = new_page()
    # nbconvert's own page asks for MathJax and require.js: answered with nothing, and the same without our views.
    page.route(lambda url: url.startswith("http"), lambda route: route.fulfill(body=""))
    page.goto(exported(tmp_path, "without.html"))
    of_nbconvert = page.requested[1:]
    page.requested.clear()
    page.goto(exported(tmp_path, "with.html", optbook.view(record), optbook.view(other)))
    assert page.requested[1:] == of_nbconvert
    views = page.locator(VIEW)
    explore(page, views.nth(1), other)
    assert thumbnail(views.nth(0), 1, 3).is_visible()  # the first has not moved
    explore(page, views.nth(0), record)


@pytest.fixture
def jupyterlab(tmp_path):
    """A JupyterLab on this machine with two notebooks, of which it trusts ``trusted.ipynb``; gives url and token."""
    pytest.importorskip("jupyterlab")
    folders = {name: tmp_path / name for name in ("notebooks", "data", "runtime", "config", "settings", "workspaces")}
    for folder in folders.values():
        folder.mkdir()
    trusted, untrusted = (notebook_of(optbook.view(make_record())) for _ in range(2))
    untrusted.cells[0].source += "  # from a stranger"  # else it would have the same signature
    nbformat.write(trusted, folders["notebooks"] / "trusted.ipynb")
    nbformat.write(untrusted, folders["notebooks"] / "untrusted.ipynb")
    notary = NotebookNotary(data_dir=str(folders["data"]))
    notary.sign(nbformat.read(folders["notebooks"] / "trusted.ipynb", as_version=4))
    notary.store.close()
    environment = os.environ | {
        "JUPYTER_DATA_DIR": str(folders["data"]),
        "JUPYTER_RUNTIME_DIR": str(folders["runtime"]),
        "JUPYTER_CONFIG_DIR": str(folders["config"]),
        "JUPYTERLAB_SETTINGS_DIR": str(folders["settings"]),
        "JUPYTERLAB_WORKSPACES_DIR": str(folders["workspaces"]),
    }
    options = [
        *("--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--LabApp.news_url=None"),
        *("--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"),
    ]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=folders["notebooks"],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        yield running_server(server, folders["runtime"], tmp_path / "log")
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it waits for a kernel that is still starting; that ends with its parent
            server.kill()


def running_server(server, runtime, log):
    """Url and token, as soon as the server has written them down and answers."""
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        for path in runtime.glob("jpserver-*.json"):
            try:
                info = json.loads(path.read_text())
            except ValueError:  # half written
                continue
            return info["url"], info["token"]
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def pixels(locator):
    return locator.evaluate("canvas => canvas.toDataURL()")


def wait_for_colors(page, like=None, unlike=None):
    """Until the first map is drawn as it was, or otherwise; the paper under it must be of the same theme."""
    page.wait_for_function(
        """([pixels, same]) => {
            const view = document.querySelector(".optbook-view");
            const paper = getComputedStyle(view).backgroundColor;
            const drawn = view.querySelector("canvas").toDataURL();
            return (drawn === pixels) === same && (paper === "rgb(255, 255, 255)") === same;
        }""",
        arg=[like or unlike, like is not None],
    )


def test_jupyterlab(jupyterlab, new_page):
    url, token = jupyterlab
    page = new_page()
    page.goto(f"{url}lab/tree/trusted.ipynb?token={token}")
    view = page.locator(VIEW)
    view.get_by_role("grid").wait_for(timeout=60_000)
    explore(page, view, make_record())
    page.keyboard.press("b")  # JupyterLab's key for a new cell, but not inside the view
    assert page.locator(".jp-Notebook .jp-Cell").count() == 1
    light = pixels(view.locator("canvas").first)
    page.locator(".lm-MenuBar-item", has_text="Settings").click()
    page.locator(".lm-Menu-item", has_text="Theme").first.hover()
    page.locator(".lm-Menu-item", has_text="JupyterLab Dark").first.click()
    wait_for_colors(page, unlike=light)
    page.goto(f"{url}lab/tree/untrusted.ipynb?reset")
    page.get_by_text("A script draws this view").wait_for(timeout=60_000)
    assert page.get_by_role("grid", name="all heads").count() == 0
    assert {request.split("/")[2] for request in page.requested if request.startswith("http")} == {url.split("/")[2]}


def test_a_page_that_runs_the_script_elsewhere(new_page, record, tmp_path):
    """VS Code puts the HTML in place and then runs each of its scripts at the end of the output."""
    page = new_page("about:blank")
    page.evaluate(
        """html => {
            document.body.innerHTML = html;
            const script = document.createElement("script");
            script.text = document.body.querySelector("script").innerText;
            document.body.appendChild(script).remove();
        }""",
        optbook.view(record)._repr_html_(),
    )
    explore(page, page.locator(VIEW), record)


def test_inside_a_frame(new_page, record):
    """Colab shows each output in a frame of its own, from which the page around it is out of reach."""
    page = new_page("about:blank")
    page.evaluate(
        """html => {
            const frame = document.createElement("iframe");
            frame.sandbox = "allow-scripts";
            frame.style = "width: 1000px; height: 900px";
            frame.srcdoc = html;
            document.body.appendChild(frame);
        }""",
        optbook.view(record)._repr_html_(),
    )
    explore(page, page.frame_locator("iframe").locator(VIEW), record)


def test_without_scripts_a_line_says_what_to_do(new_page, record, tmp_path):
    page = new_page(saved(record, tmp_path), java_script_enabled=False)
    text = page.locator(VIEW).inner_text()
    assert text.startswith("attention of 2 layers × 3 heads on 2 sequences of 5 tokens. A script draws this view")


def test_labels_are_shown_and_never_run(new_page, tmp_path):
    page = new_page(saved(make_record(tokens=HOSTILE), tmp_path))
    view = page.locator(VIEW)
    thumbnail(view, 1, 0).click()
    shown = view.locator("[role=listbox] .ob-token").evaluate_all("all => all.map(one => one.textContent)")
    assert shown == [visible(label) for label in HOSTILE[0]]
    assert view.locator("img").count() == 0


def test_sequences_and_the_hatching_of_padding(new_page, record, tmp_path):
    page = new_page(saved(record, tmp_path))
    view = page.locator(VIEW)
    thumbnail(view, 2, 5).click()
    canvas, hatch = view.locator(".ob-cells canvas"), view.get_by_label("hatch padding")
    hatched = pixels(canvas)
    hatch.uncheck()
    assert pixels(canvas) == hatched  # the first sequence has no padding
    view.get_by_label("sequence").select_option(index=1)
    plain = pixels(canvas)
    hatch.check()
    assert pixels(canvas) != plain
    assert view.locator("[role=listbox] .ob-token").all_inner_texts() == record.tokens[1]
    assert_token_shown(view, record.map(2, 5, row=1), 2)  # the last real token


def test_the_map_has_the_colors_of_the_record(new_page, tmp_path):
    """Every cell is drawn, in its place; the future stays empty."""
    record = make_record(tokens=[["a", "b", "c", "d"]])
    weights = np.zeros_like(record.weights)
    weights[..., 0, 0] = weights[..., 1, 1] = weights[..., 2, 0] = weights[..., 3, 2] = 1
    page = new_page(saved(dataclasses.replace(record, weights=weights), tmp_path))
    drawn = page.locator(f"{VIEW} canvas").first.evaluate(
        """canvas => [...Array(16).keys()].map(cell => {
            const at = place => (place + 0.5) * canvas.width / 4;
            const [x, y] = [at(cell % 4), at(Math.floor(cell / 4))];
            return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].join();
        })"""
    )
    none, all_, empty = "243,242,219,255", "23,27,103,255", "0,0,0,0"
    future = np.triu(np.ones((4, 4)), 1)
    expected = np.where(future, empty, np.where(weights[0, 0, 0] == 1, all_, none))
    assert drawn == expected.ravel().tolist()


def test_rows_without_the_first_token_sum_to_one(new_page, record, tmp_path):
    page = new_page(saved(record, tmp_path))
    view = page.locator(VIEW)
    thumbnail(view, 1, 0).click()
    view.get_by_label("leave out the first token").check()
    attention = record.map(1, 0).copy()
    attention[:, 0] = 0
    attention[1:] /= attention[1:].sum(axis=1, keepdims=True)
    for position in range(1, 5):
        chips(view).nth(position).hover()
        assert_token_shown(view, attention, position)


READABLE = """() => {
    // Contrast and size of every visible text, as WCAG measures it, against the nearest background that is not clear.
    const channels = color => color.match(/[\\d.]+/g).map(Number);
    const luminance = color => channels(color).slice(0, 3).map(c => c / 255)
        .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const background = element => {
        const color = getComputedStyle(element).backgroundColor;
        return channels(color)[3] === 0 ? background(element.parentElement) : color;
    };
    const found = [];
    for (const element of document.querySelectorAll(".optbook-view *")) {
        const ownText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!ownText || !element.checkVisibility() || ["STYLE", "SCRIPT", "OPTION"].includes(element.tagName)) continue;
        const style = getComputedStyle(element);
        const [dark, light] = [luminance(style.color), luminance(background(element))].sort((a, b) => a - b);
        found.push([element.textContent, (light + 0.05) / (dark + 0.05), parseFloat(style.fontSize)]);
    }
    return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_is_readable(new_page, record, tmp_path, theme):
    page = new_page(saved(record, tmp_path), color_scheme=theme)
    view = page.locator(VIEW)
    texts = page.evaluate(READABLE)
    thumbnail(view, 1, 0).click()
    view.get_by_label("sequence").select_option(index=1)
    for position in range(5):
        chips(view).nth(position).hover()
        texts += page.evaluate(READABLE)
    assert len(texts) > 100
    assert [(text, contrast) for text, contrast, _ in texts if contrast < 4.5] == []
    assert min(size for *_, size in texts) >= 11


def test_the_theme_of_the_system_and_of_the_page_are_followed(new_page, record, tmp_path):
    page = new_page(saved(record, tmp_path))
    canvas = page.locator(f"{VIEW} canvas").first
    light = pixels(canvas)
    page.emulate_media(color_scheme="dark")
    wait_for_colors(page, unlike=light)
    page.evaluate("document.body.setAttribute('data-jp-theme-light', 'true')")  # JupyterLab and nbconvert
    wait_for_colors(page, like=light)
    page.emulate_media(color_scheme="light")
    for attribute, value in [("data-jp-theme-light", "false"), ("class", "vscode-dark"), ("theme", "dark")]:
        page.evaluate("([name, value]) => document.body.setAttribute(name, value)", [attribute, value])
        wait_for_colors(page, unlike=light)
        page.evaluate("name => document.body.removeAttribute(name)", attribute)
        wait_for_colors(page, like=light)


@pytest.mark.parametrize("width", [380, 600])
def test_a_narrow_page_does_not_scroll_sideways(new_page, tmp_path, width):
    record = make_record(tuple(range(12)), tuple(range(12)), [["␣somewhat"] * 30 + ["␣" + "long" * 30] * 2])
    page = new_page(saved(record, tmp_path), viewport={"width": width, "height": 700})
    view = page.locator(VIEW)

    def assert_fits():
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert view.bounding_box()["x"] + view.bounding_box()["width"] <= width
        clipped = view.evaluate("view => view.scrollWidth > view.clientWidth")  # nothing is cut off at its edge
        assert not clipped

    assert_fits()
    scroll = view.locator(".ob-scroll")
    assert scroll.evaluate("inner => inner.scrollWidth > inner.clientWidth")  # the heads scroll inside
    thumbnail(view, 11, 11).click()
    assert_fits()
    assert view.locator(".ob-map-scroll").evaluate("inner => inner.scrollWidth > inner.clientWidth")
    assert chips(view).last.bounding_box()["width"] <= width
