"""A viewer who stays: the live page in Chromium for half an hour, with a click on another class every few seconds.

    python benchmarks/live_page.py --model-ckpt runs/demo/export --out benchmarks/results/live_page_cpu.json
    python benchmarks/live_page.py --model-ckpt runs/demo/quick/export --minutes 1

Runs live.py as a user would, on a free port, and a Chromium without a window that plays its page. Server, browser and
whatever else the machine does share its cores: leave it alone meanwhile. docs/live.md says what was found.
"""

import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli
from benchmarks.chromium import FOUND, chromium
from benchmarks.timing import resident_gib

METHOD = (
    "live.py and a page in Chromium without a window, both on this machine. memory: resident GiB of the server, and of "
    "the page's script, once a second; spread is (largest - smallest) / mean over the last third. offset: clock of the "
    "sound less the time of the picture when that is shown, ms, median of the last 41 pictures; worst is the largest "
    "that was seen, once a second. late: seconds by which a picture came later after the one before it than film time "
    "says. stalls: times that the player ran dry. clicks: seconds to the first frame on the screen that was not done "
    "at the click. colours: seconds to the first picture in which the asked class's colour is the strongest by 15 %."
)
SOON = 1.5  # s in which a click is to be seen
COLOURS = ("red", "green", "blue")  # classes that are clicked on, in the order of a pixel's channels
COLOUR = """(film) => {
  const video = live.players.get(film).video, canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 32, 32);
  const data = pen.getImageData(0, 0, 32, 32).data, sums = [0, 0, 0];
  for (let i = 0; i < data.length; i++) if (i % 4 < 3) sums[i % 4] += data[i];
  return sums.map((sum) => sum / 1024);
}"""  # means of red, green and blue over the picture that a film shows now
WATCH = f"""() => {{
  const colour = {COLOUR};
  const found = live.players.get(1)?.video;
  window.kept ??= {{ late: 0, colours: [], restarts: -1, video: null, asked: null }};
  if (!found || kept.video === found) return;
  Object.assign(kept, {{ video: found, restarts: kept.restarts + 1, last: null }});
  const seen = (now, {{ mediaTime }}) => {{
    if (kept.video !== found) return;
    if (kept.last) kept.late = Math.max(kept.late, (now - kept.last[0]) / 1000 - (mediaTime - kept.last[1]));
    kept.last = [now, mediaTime];
    const sums = kept.asked ? colour(1) : [], own = sums[kept.asked?.place];
    if (kept.asked && own === Math.max(...sums) && own > 1.15 * [...sums].sort((a, b) => a - b)[1]) {{
      kept.colours.push((performance.now() - kept.asked.began) / 1000);
      kept.asked = null;
    }}
    found.requestVideoFrameCallback(seen);
  }};
  found.requestVideoFrameCallback(seen);
}}"""
CLICK = """([name, place]) => {
  if (kept.asked) kept.colours.push(null);
  kept.asked = { place, began: performance.now() };
  document.querySelector(`#classes [data-label="${name}"]`).click();
}"""
STANDS = """() => ({ offset: live.offset ?? null, heap: performance.memory.usedJSHeapSize / 2 ** 30,
  at: kept.video?.currentTime ?? null })"""
ENDS = """() => ({ clicks: live.clicks, colours: kept.colours, late: kept.late, stalls: live.stalls,
  longest: live.stalled, restarts: kept.restarts, speed: live.standing?.speed, p50: live.standing?.p50,
  p99: live.standing?.p99 })"""


def main(argv=None) -> None:
    p = cli.Parser(__doc__.splitlines()[0])
    p.add_argument("--model-ckpt", default="runs/demo/export", help="a model with the classes red, green and blue")
    p.add_argument("--minutes", type=cli.finite, default=30, help="that the page is watched")
    p.add_argument("--every", type=cli.positive, default=10, help="seconds from one click to the next")
    p.add_argument("--out", type=Path, help="JSON file for the figures")
    args = p.parse_args(argv)
    if not FOUND:
        p.error("there is no chromium on the PATH; install Debian's, or name one by CHROMIUM")
    if args.minutes * 60 < 3 * args.every:
        p.error(f"--minutes {args.minutes:g} leaves no time for three clicks; give at least {args.every / 20:g}")
    with serving(args.model_ckpt) as (process, address), chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        found = watch(page, process.pid, 60 * args.minutes, args.every)
    print(told(found))
    if args.out:
        cli.output_folder(args.out.parent)
        cli.write_json(args.out, {"method": METHOD, "machine": cli.machine(), "command": sys.argv, **found})


@contextmanager
def serving(checkpoint: str):
    """live.py on a free port: its process and its address.

    Raises:
        ValueError: it ended before it had one; says what it said.
    """
    with TemporaryDirectory() as folder:
        command = (sys.executable, cli.ROOT / "live.py", "--model-ckpt", checkpoint, "--port", 0, "--device", "cpu",
                   "--results-dir", folder)  # fmt: skip
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            if not line.startswith("film on "):
                raise ValueError(f"live.py did not begin: {line.strip() or 'its message is above'}")
            yield process, line.split()[2]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()


def watch(page, server: int, seconds: float, every: int) -> dict:
    """Figures of a page that plays for a time. server: its process."""
    page.wait_for_timeout(3000)
    page.evaluate(WATCH)
    began, clicked, rows, classes = time.monotonic(), 0, [], cycle(enumerate(COLOURS))
    while (now := time.monotonic() - began) < seconds:
        page.evaluate(WATCH)  # again, should the page have joined anew
        rows.append({"second": round(now, 1), "server": resident_gib(server), **page.evaluate(STANDS)})
        if now >= (clicked + 1) * every and now < seconds - every / 2:
            clicked += 1
            place, name = next(classes)
            page.evaluate(CLICK, [name, place])
        page.wait_for_timeout(1000)
    end = page.evaluate(ENDS)
    offsets = [abs(row["offset"]) for row in rows if row["offset"] is not None]
    return {
        "watched_s": rows[-1]["second"], "played_s": rows[-1]["at"] - rows[0]["at"], "clicked": clicked,
        "memory": {of: memory([row[of] for row in rows]) for of in ("server", "heap")},
        "offset_ms": {"end": rows[-1]["offset"], "median": statistics.median(offsets), "worst": max(offsets)},
        **{of: quantiles(end.pop(of)) for of in ("clicks", "colours")}, **end,
        "every_minute": rows[::60],
    }  # fmt: skip


def memory(values: list[float]) -> dict[str, float]:
    """GiB a third of the time on, at the end and at most; the spread of the last third."""
    last = values[2 * len(values) // 3 :]
    spread = (max(last) - min(last)) / statistics.mean(last)
    return {"third": values[len(values) // 3], "end": values[-1], "most": max(values), "spread_of_last_third": spread}


def quantiles(seconds: list[float | None]) -> dict:
    """p50, p99 and the largest of some times; how many there are, how many never came, the share that came soon."""
    found = sorted(s for s in seconds if s is not None)
    if not found:
        return {"count": 0, "missed": len(seconds)}
    p99 = found[min(len(found) - 1, int(0.99 * len(found)))]
    return {"count": len(found), "missed": len(seconds) - len(found), "p50": statistics.median(found), "p99": p99,
            "most": found[-1], "soon": sum(s <= SOON for s in found) / len(seconds)}  # fmt: skip


def told(found: dict) -> str:
    """The figures in a few lines."""
    server, offset = found["memory"]["server"], found["offset_ms"]
    lines = [
        f"{found['watched_s']:.0f} s watched, {found['played_s']:.0f} s of film played, {found['restarts']} restarts",
        f"server: {server['third']:.3f} GiB after a third, {server['end']:.3f} at the end, "
        f"spread of the last third {100 * server['spread_of_last_third']:.2f} %",
        f"picture to sound: {offset['end']:.1f} ms at the end, {offset['worst']:.1f} at worst",
        f"stalls {found['stalls']}, the longest {found['longest']:.2f} s; a picture at most {found['late']:.2f} s late",
    ]
    for of in ("clicks", "colours"):
        x = found[of]
        if x["count"]:
            lines.append(
                f"{of}: p50 {x['p50']:.2f} s, p99 {x['p99']:.2f} s of {x['count']}, {x['missed']} never, "
                f"{100 * x['soon']:.0f} % within {SOON:g} s"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
