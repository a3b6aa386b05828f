"""Look at the built site in a real browser: `python docs/browser.py site`.

Each page is opened in headless Chromium, 400 pixels wide. It must load without a console message, a
missing file, a broken image or link, and without scrolling sideways; the search must find
'divergences'. Without Chromium this says so and checks nothing.
"""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--enable-logging=stderr", "--window-size=1300,900",
)  # fmt: skip
WIDTH = 400
LIMIT = 600.0  # seconds; on idle cores it takes one minute

HARNESS = """<!doctype html><meta charset="utf-8"><title>check</title><body><script>
const pages = PAGES, width = WIDTH, frame = document.createElement("iframe");
const pause = ms => new Promise(done => setTimeout(done, ms));
document.body.append(frame);
async function open(page, wide) {
  frame.style = `width:${wide}px;height:800px;border:0`;
  await new Promise(done => { frame.onload = done; frame.src = page; });
  await pause(50);
  return frame.contentDocument;
}
(async () => {
  const report = {pages: {}};
  for (const page of pages) {
    const it = await open("/" + page, width);
    const images = [...it.images];
    images.forEach(image => { image.loading = "eager"; });
    await Promise.all(images.map(image => image.decode().catch(() => null)));
    report.pages[page] = {
      title: it.title,
      broken: images.filter(image => !image.naturalWidth).map(image => image.src),
      width: it.scrollingElement.scrollWidth,
      links: [...it.links].map(link => link.href),
    };
  }
  const it = await open("/index.html?q=divergences", 1200);
  for (let i = 0; i < 200 && !it.querySelector(".md-search-result__item"); i++) await pause(100);
  report.found = [...it.querySelectorAll(".md-search-result__link")].map(link => link.href);
  await fetch("/report", {method: "POST", body: JSON.stringify(report)});
})();
</script>"""


def serve(site: Path, pages: list[str]) -> tuple[Any, dict[str, Any], threading.Event]:
    """Serve a site with the page that looks at it; return the server, the report, its event."""
    seen: dict[str, Any] = {"missing": []}
    done = threading.Event()
    harness = HARNESS.replace("PAGES", json.dumps(pages)).replace("WIDTH", str(WIDTH)).encode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(site))

        def do_GET(self) -> None:
            if self.path != "/check":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(harness)

        def do_POST(self) -> None:
            seen["report"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()
            done.set()

        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            if int(code) >= 400 and self.path != "/favicon.ico":
                seen["missing"].append(f"{self.path} ({int(code)})")

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, seen, done


def broken_links(site: Path, report: dict[str, Any], address: str) -> list[str]:
    """List the links to files or headings of the site that do not exist."""
    anchors: dict[Path, set[str]] = {}
    broken = []
    for page, seen in report["pages"].items():
        for link in {x for x in seen["links"] if x.startswith(address)}:
            parts = urllib.parse.urlsplit(link)
            target = site / urllib.parse.unquote(parts.path).lstrip("/")
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                broken.append(f"{page}: {parts.path} does not exist")
                continue
            if target.suffix == ".html" and parts.fragment:
                if target not in anchors:
                    text = target.read_text(encoding="utf-8")
                    anchors[target] = set(re.findall(r'\b(?:id|name)="?([^"\s>]+)', text))
                if urllib.parse.unquote(parts.fragment) not in anchors[target]:
                    broken.append(f"{page}: {parts.path}#{parts.fragment} does not exist")
    return broken


def check(site: Path, browser: str) -> tuple[int, list[str]]:
    """Return the number of pages, and what is wrong with them."""
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    server, seen, done = serve(site, pages)
    address = f"http://127.0.0.1:{server.server_port}"
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile("w+") as log:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"{address}/check"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process:
            finished = done.wait(LIMIT)
            process.terminate()
        server.shutdown()
        log.seek(0)
        said = [line.strip() for line in log if "CONSOLE" in line]
    if not finished:
        return len(pages), [f"the browser was not done after {LIMIT:g} s", *said[-5:]]
    report = seen["report"]
    wrong = [f"console: {line}" for line in said]
    wrong += [f"missing: {path}" for path in seen["missing"]]
    for page, of in report["pages"].items():
        wrong += [f"{page}: broken image {source}" for source in of["broken"]]
        wrong += [f"{page}: no title"] if not of["title"] else []
        if of["width"] > WIDTH:
            wrong.append(f"{page}: {of['width']} pixels wide in a window of {WIDTH}")
    wrong += broken_links(site, report, address)
    if not any("findings" in link for link in report["found"]):
        wrong.append(f"the search for 'divergences' finds {report['found'][:3] or 'nothing'}")
    return len(pages), wrong


def working_browser() -> str:
    """Return a browser that opens an empty page.

    Raises:
        RuntimeError: there is none.
    """
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        raise RuntimeError("Chromium is missing")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", "about:blank"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{browser} does not run ({error})") from None
    if "<html" not in done.stdout:
        raise RuntimeError(f"{browser} does not run ({done.stderr[-200:]})")
    return browser


def main() -> None:
    """Check a site and exit with an error if something is wrong with it."""
    try:
        browser = working_browser()
    except RuntimeError as error:
        sys.stdout.write(f"SKIPPED: the site was not opened in a browser; {error}\n")
        return
    count, wrong = check(Path(sys.argv[1]).resolve(), browser)
    if wrong:
        sys.exit("\n".join(wrong))
    sys.stdout.write(f"{count} pages opened in a browser: all right\n")


if __name__ == "__main__":
    main()
