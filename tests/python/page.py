"""Uses the web page as people do, in a real Chromium without a window.

usage: page.py URL SCENE [SCREENSHOT_DIR]

Each scene is a function below. Whatever the scene, the page may load nothing from elsewhere and may say nothing to the
console. A scene that needs something done to the cluster prints a line and waits for one.
"""

import base64
import json
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

URL, SCENE = sys.argv[1:3]
SHOTS = Path(sys.argv[3]) if len(sys.argv) > 3 else None
# Generous: the machine may be busy.
LONG = 120_000
expect.set_options(timeout=LONG)
TABS = ["Paint", "Ask", "Complete", "Jobs"]

# Notes what a canvas shows whenever its label changes, which is after every step.
WATCH = """
window.seen = [];
new MutationObserver((changes) => {
  for (const { target } of changes) {
    if (target.tagName !== "CANVAS" || !target.width) continue;
    const { width, height } = target;
    const data = Array.from(target.getContext("2d").getImageData(0, 0, width, height).data);
    const index = [...document.querySelectorAll("figure canvas")].indexOf(target);
    window.seen.push({ at: performance.now(), label: target.getAttribute("aria-label"), index, width, height, data });
  }
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["aria-label"] });
document.addEventListener("submit", () => (window.submitted = performance.now()), true);
"""

PIXELS = """
async (base64) => {
  const blob = await (await fetch(`data:image/png;base64,${base64}`)).blob();
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return Array.from(context.getImageData(0, 0, bitmap.width, bitmap.height).data);
}
"""

CANVAS = """
(canvas) => Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)
"""


def api(page, path, body=None):
    """This server's answer to a request that no page made."""
    request = page.context.request
    answer = request.get(URL + path) if body is None else request.post(URL + path, data=body)
    assert answer.ok, f"{path}: {answer.status} {answer.text()}"
    return answer.json()


def pixels(page, png):
    # The page's policy lets nothing be fetched from a data: URL, so another page decodes.
    other = page.context.new_page()
    data = other.evaluate(PIXELS, png)
    other.close()
    return data


def paint(page, panel, **fields):
    """Fills a form in and sends it."""
    for name, value in fields.items():
        panel.locator(f"[name={name}]").fill(str(value))
    panel.locator("button.main").click()


def until(page, condition):
    """Waits for a condition in the page; its own policy lets nothing be evaluated there later."""
    page.evaluate(
        f"""async () => {{
          const end = performance.now() + {LONG};
          while (!({condition})) {{
            if (performance.now() > end) throw new Error({json.dumps(condition)});
            await new Promise((resolve) => setTimeout(resolve, 20));
          }}
        }}"""
    )


def done(panel):
    expect(panel.locator(".status")).to_have_text(re.compile(r"^Done in "))


def finished(page, panel, index=0):
    return panel.locator("figure canvas").nth(index).evaluate(CANVAS)


def steps(page, index=0):
    """What was seen of an unfinished picture."""
    seen = page.evaluate("window.seen")
    return [s for s in seen if s["index"] == index and "% painted" in s["label"]]


def ids_of(page, **request):
    """Ids of a picture, as the server's other door says them."""
    request = {"stream": True, "stream_ids": True, **request}
    answer = page.context.request.post(URL + "/v1/images/generations", data=request)
    ids = []
    for line in answer.text().splitlines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            if event["type"] == "image_generation.progress" and event["index"] == 0:
                ids += event["ids"]
    return ids


def shot(page, name):
    if SHOTS:
        page.screenshot(path=SHOTS / f"{name}.png")


def scene_paint(page):
    """Pictures appear id by id in the palette's colours, and end as the pictures that the API gives."""
    panel = page.get_by_role("tabpanel", name="Paint")
    expect(page.locator("#model")).to_contain_text("64 × 64")
    # Before anything is painted the page has asked for the colours; this waits for the same answer.
    palette = base64.b64decode(api(page, "/ui/api/model?palette=true")["palette"])
    prompt = "a red circle above a blue square"
    paint(page, panel, prompt=prompt, n=2, seed=7)
    done(panel)
    request = {"prompt": prompt, "n": 2, "seed": 7}
    pictures = api(page, "/v1/images/generations", request)["data"]
    for index, picture in enumerate(pictures):
        assert finished(page, panel, index) == pixels(page, picture["b64_json"]), f"picture {index} is another one"
    ids = ids_of(page, **request)
    seen = steps(page)
    assert seen, "nothing was seen before the end"
    for step in seen:
        assert (step["width"], step["height"]) == (8, 8)
        known = sum(step["data"][4 * at + 3] == 255 for at in range(64))
        for at in range(known):
            shown = tuple(step["data"][4 * at : 4 * at + 3])
            ours = tuple(palette[3 * ids[at] : 3 * ids[at] + 3])
            assert shown in (ours, (128, 128, 140)), f"id {at} is shown as {shown}, not {ours}"
        assert not any(step["data"][4 * known :]), "ids are shown out of order"
    counts = [sum(s["data"][4 * at + 3] == 255 for at in range(64)) for s in seen]
    assert counts == sorted(counts) and 0 < counts[0] < 64, counts
    last = seen[-1]["data"]
    coloured = [tuple(last[4 * at : 4 * at + 3]) != (128, 128, 140) for at in range(64) if last[4 * at + 3]]
    assert all(coloured), "the last step had no colours"
    expect(panel.get_by_role("link", name="Save")).to_have_count(2)
    # A finished picture goes on to the other sections.
    panel.get_by_role("button", name="Complete it").first.click()
    expect(page.get_by_role("tabpanel", name="Complete")).to_be_visible()
    expect(page.locator("#complete .drop span")).to_contain_text("janus-7.png, 64 × 64")


def scene_ask(page):
    """A dropped picture is asked about; the answer comes in pieces and is the one that the API gives."""
    page.get_by_role("tab", name="Ask").click()
    panel = page.get_by_role("tabpanel", name="Ask")
    picture = api(page, "/v1/images/generations", {"prompt": "a red circle", "seed": 3})["data"][0]["b64_json"]
    page.evaluate(
        """(base64) => {
          const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
          const zone = document.querySelector("#ask .drop");
          for (const name of ["dragover", "drop"]) {
            zone.dispatchEvent(new DragEvent(name, { dataTransfer: transfer, bubbles: true, cancelable: true }));
          }
          window.pieces = 0;
          const answer = document.querySelector("#ask .answer");
          new MutationObserver(() => (window.pieces += 1)).observe(answer, { childList: true, characterData: true });
        }""",
        picture,
    )
    expect(panel.locator(".drop span")).to_have_text("dropped.png, 64 × 64")
    expect(panel.locator(".drop canvas")).to_be_visible()
    question = "What is in the picture?"
    panel.locator("textarea").fill(question)
    panel.get_by_role("button", name="Ask").click()
    expect(panel.locator(".stop")).to_be_hidden()
    expect(panel.locator(".status")).to_have_text("")
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": question},
    ]
    body = {"model": api(page, "/ui/api/model")["model"], "messages": [{"role": "user", "content": content}]}
    answer = api(page, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    assert answer.strip() and panel.locator(".answer").text_content() == answer, answer
    assert page.evaluate("window.pieces") > 1, "it came in one piece"


def scene_complete(page):
    """The upper rows stay, the rest is painted anew; what is kept is seen from the beginning."""
    first = {"prompt": "a red circle", "seed": 5}
    picture = api(page, "/v1/images/generations", first)["data"][0]["b64_json"]
    page.get_by_role("tab", name="Complete").click()
    panel = page.get_by_role("tabpanel", name="Complete")
    # Without a picture it says what is missing.
    paint(page, panel, prompt="a red circle")
    expect(panel.locator(".status")).to_have_text("Choose a picture first.")
    data = base64.b64decode(picture)
    panel.locator("input[type=file]").set_input_files([{"name": "mine.png", "mimeType": "image/png", "buffer": data}])
    expect(panel.locator(".drop canvas")).to_be_visible()
    slider = panel.get_by_role("slider")
    slider.focus()
    expect(slider).to_have_attribute("max", "8")
    slider.press("Home")
    for _ in range(3):
        slider.press("ArrowRight")
    expect(panel.locator("output")).to_have_text("3 of 8 rows")
    paint(page, panel, prompt="a blue square", seed=11)
    done(panel)
    request = {"prompt": "a blue square", "n": 1, "seed": 11, "init_image": picture, "keep_rows": 3}
    (again,) = api(page, "/v1/images/generations", request)["data"]
    assert finished(page, panel) == pixels(page, again["b64_json"])
    known = sum(steps(page)[0]["data"][4 * at + 3] == 255 for at in range(64))
    assert 24 <= known < 64, f"{known} ids at first, of which 24 are kept"


def scene_loss(page):
    """A stage dies while a picture is painted: the page shows it, and the picture goes on to what it would have been."""
    panel = page.get_by_role("tabpanel", name="Paint")
    cluster = page.locator("#cluster")
    expect(cluster.locator(".pipeline .state")).to_have_text("ready")
    stages = cluster.get_by_role("list", name="Stages of pipeline 1").get_by_role("listitem")
    expect(stages).to_have_count(3)
    expect(stages.first).to_contain_text("layer")
    assert cluster.locator(".nodes li").count() >= 6
    api(page, "/ui/api/model?palette=true")
    prompt = "a red circle above a blue square"
    paint(page, panel, prompt=prompt, n=2, seed=7)
    until(page, "window.seen.some((s) => s.label.includes('% painted'))")
    expect(cluster.locator(".pipeline .row")).to_contain_text("microbatches/s")
    dots = "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
    until(page, f"[...document.querySelectorAll('.track canvas')].some({dots})")
    until(page, "window.seen.filter((s) => s.label.includes('% painted')).length > 12")
    print("painting", flush=True)
    killed = sys.stdin.readline().strip()
    history = cluster.locator(".history")
    expect(history).to_contain_text("pipeline 1 has epoch")
    expect(history).to_contain_text("pipeline 1 went on after")
    expect(panel.locator(".status")).to_contain_text("the picture goes on")
    if SHOTS:
        until(page, "document.querySelector('figure progress').value > 40")
    shot(page, "page")
    done(panel)
    expect(panel.locator(".status")).to_contain_text("went on after a loss")
    expect(cluster.locator(".pipeline .state")).to_have_text("ready")
    expect(history).to_contain_text(killed)
    pictures = api(page, "/v1/images/generations", {"prompt": prompt, "n": 2, "seed": 7})["data"]
    for index, picture in enumerate(pictures):
        assert finished(page, panel, index) == pixels(page, picture["b64_json"]), f"picture {index} is another one"


def scene_soon(page):
    """Something is seen of a picture within an eighth of its time."""
    panel = page.get_by_role("tabpanel", name="Paint")
    api(page, "/ui/api/model?palette=true")
    # The first picture also pays for what is done once.
    for seed in (1, 2):
        page.evaluate("window.seen = []")
        paint(page, panel, prompt="a green star", seed=seed)
        done(panel)
        until(page, "window.seen.some((s) => s.label.includes(': '))")
    first, begun = steps(page)[0]["at"], page.evaluate("window.submitted")
    end = page.evaluate("window.seen.at(-1).at")
    share = (first - begun) / (end - begun)
    print(f"first preview after {share:.3f} of {(end - begun) / 1000:.1f} s", file=sys.stderr)
    assert share < 1 / 8, share


def scene_keyboard(page):
    """Everything can be reached and done without a mouse, and has a name."""
    expect(page.locator("#model")).to_contain_text("64 × 64")
    names = []
    for _ in range(30):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.className"))
        ring = page.evaluate(
            "(() => { const e = document.activeElement; return e === document.body || getComputedStyle(e).outlineStyle })()"
        )
        assert ring in (True, "solid", "auto"), f"{names[-1]} does not show that it has the focus: {ring}"
        if "history" in names[-1]:
            break
    wanted = ["skip", "key", "theme", "tab-paint", "paint-prompt", "n", "seed", "guidance", "main", "history"]
    assert [n for n in names if n in wanted] == wanted, names
    # Tabs by arrows; then the prompt is the next stop, and Control and Enter send it.
    page.locator("#tab-paint").focus()
    for name in ["ask", "complete", "jobs", "paint"]:
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{name}"
        expect(page.locator(f"#{name}")).to_be_visible()
        expect(page.locator("[role=tabpanel]:visible")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.type("a yellow star")
    page.keyboard.press("Control+Enter")
    panel = page.get_by_role("tabpanel", name="Paint")
    done(panel)
    # The file chooser opens by keyboard too.
    page.locator("#tab-ask").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"
    with page.expect_file_chooser():
        page.keyboard.press("Space")
    # Each control has a name for those who do not see it.
    session = page.context.new_cdp_session(page)
    for name in TABS:
        page.get_by_role("tab", name=name).click()
        for node in session.send("Accessibility.getFullAXTree")["nodes"]:
            properties = {p["name"]: p["value"].get("value") for p in node.get("properties", [])}
            role = node.get("role", {}).get("value")
            if properties.get("focusable") and role not in ("RootWebArea", "main") and not node.get("ignored"):
                assert node.get("name", {}).get("value"), f"a {role} in {name} has no name"


def scene_phone(page):
    """On a small screen nothing is wider than it, in every section, light and dark, and text can be read."""
    panel = page.get_by_role("tabpanel", name="Paint")
    paint(page, panel, prompt="a red circle " * 12, n=3)
    done(panel)
    for width, height in [(320, 568), (390, 844)]:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ["light", "dark"]:
            page.emulate_media(color_scheme=scheme)
            for name in TABS:
                page.get_by_role("tab", name=name).click()
                wide = page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name} is {wide} pixels wide on {width}"
            ground, ink = page.evaluate(
                "[getComputedStyle(document.querySelector('main')).backgroundColor, getComputedStyle(document.body).color]"
            )
            dark = sum(map(int, re.findall(r"\d+", ground)[:3])) < 300
            assert dark == (scheme == "dark"), (scheme, ground)
            low = page.evaluate(CONTRAST)
            assert not low, f"hard to read in {scheme}: {low}"
    page.emulate_media(color_scheme="light")
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
    page.get_by_role("tab", name="Paint").click()
    shot(page, "page-phone")


# Visible text whose contrast with what is behind it is below 4.5 (WCAG 2.1, 1.4.3).
CONTRAST = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const part = (v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.tagName === "OPTION") continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) low.push(`${element.textContent.trim().slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return low;
}
"""


def scene_words(page):
    """What goes wrong is said in words; the key stays in this tab."""
    panel = page.get_by_role("tabpanel", name="Paint")
    status = panel.locator(".status")
    paint(page, panel, prompt="word " * 3000)
    expect(status).to_contain_text("prompt")
    expect(status).to_have_class(re.compile("problem"))
    assert "{" not in status.text_content()
    # The key goes along with every request from now on, and over a reload, but not into another tab.
    page.locator("#key").fill("secret-1")
    with page.expect_request(lambda r: r.url.endswith("/ui/api/model") and r.headers.get("authorization") == "Bearer secret-1"):
        page.locator("#key").press("Enter")
    page.reload()
    assert page.locator("#key").input_value() == "secret-1"
    other = page.context.new_page()
    other.goto(URL)
    assert other.locator("#key").input_value() == ""
    other.close()
    page.locator("#key").fill("")
    page.locator("#key").press("Enter")
    # A picture that is none.
    page.get_by_role("tab", name="Ask").click()
    ask = page.get_by_role("tabpanel", name="Ask")
    ask.locator("input[type=file]").set_input_files([{"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"}])
    expect(ask.locator(".status")).to_have_text("a.txt is not a picture that can be read.")
    # Too much at once, no server: as the browser sees them.
    page.get_by_role("tab", name="Paint").click()
    body = json.dumps({"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": None}})
    page.route("**/v1/images/generations", lambda r: r.fulfill(status=429, headers={"retry-after": "7"}, body=body))
    paint(page, panel, prompt="a star")
    expect(status).to_have_text("Too much at once: the queue is full. Try again in 7 seconds.")
    page.unroute("**/v1/images/generations")
    page.route("**/v1/images/generations", lambda r: r.abort())
    paint(page, panel, prompt="a star")
    expect(status).to_have_text("The server cannot be reached.")
    page.unroute("**/v1/images/generations")
    # A picture that is not wanted any more; it is not painted before the button is found.
    page.route("**/v1/images/generations", lambda r: None)
    paint(page, panel, prompt="a star")
    panel.get_by_role("button", name="Stop").click()
    expect(status).to_have_text("Stopped")


def scene_jobs(page):
    """A job of prompts is seen to its end, and another one is ended."""
    page.get_by_role("tab", name="Jobs").click()
    panel = page.get_by_role("tabpanel", name="Jobs")
    paint(page, panel, prompts="a red circle\n\n  a blue square  \na green star\n")
    expect(panel.locator(".status")).to_contain_text("has begun")
    first = panel.locator(".list li").first
    expect(first).to_contain_text("succeeded, 3 of 3")
    assert first.locator("progress").evaluate("(p) => [p.value, p.max]") == [3, 3]
    expect(first.get_by_role("button")).to_be_hidden()
    paint(page, panel, prompts="\n".join(["a red circle"] * 1000))
    expect(panel.locator(".list li")).to_have_count(2)
    expect(first).to_contain_text("of 1000")
    panel.get_by_role("button", name="Cancel job").click()
    expect(first).to_contain_text(re.compile("^.*cancelled, \\d+ of 1000"))
    paint(page, panel, prompts="\n".join(["a red circle"] * 1001))
    expect(panel.locator(".status")).to_have_text("a job here has 1 to 1000 prompts, not 1001")


def scene_key(page):
    """Where a key is needed the page says so, and goes on with the right one."""
    expect(page.locator("#model")).to_contain_text("wants an API key")
    panel = page.get_by_role("tabpanel", name="Paint")
    paint(page, panel, prompt="a red circle")
    expect(panel.locator(".status")).to_contain_text("wants an API key")
    assert page.evaluate("document.activeElement.id") == "key", "it does not lead to where the key goes"
    page.keyboard.type(sys.stdin.readline().strip())
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text("64 × 64")
    expect(page.locator("#cluster .pipeline .state")).to_have_text("ready")
    paint(page, panel, prompt="a red circle")
    done(panel)
    assert "key" not in page.url


def main():
    program = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    assert program, "no Chromium on the PATH; Debian: chromium"
    with sync_playwright() as playwright:
        # Everything is our own, and the tests run as root in containers.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1100, "height": 760}, reduced_motion="no-preference")
        context.add_init_script(WATCH)
        page = context.new_page()
        complaints = []
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        # Refusals are what some scenes are about, and it is the scenes that read canvases.
        expected = ("Failed to load resource", "Canvas2D: Multiple readback")
        page.on("console", lambda said: said.text.startswith(expected) or complaints.append(f"console: {said.text}"))

        def mine(request):
            if not request.url.startswith((URL, "data:", "blob:")):
                complaints.append(f"asked {request.url}")

        page.on("request", mine)
        try:
            page.goto(URL)
            globals()[f"scene_{SCENE}"](page)
        except BaseException:
            print(page.locator("body").inner_text(), file=sys.stderr)
            raise
        assert not complaints, complaints
        browser.close()
    print("done", flush=True)


main()
