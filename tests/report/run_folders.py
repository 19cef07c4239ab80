"""Folders as the stages leave them, small and made up, and a reader of pages."""

import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "input", "img", "br"}


def without_plotly(page: str) -> str:
    """Returns a page without the library in it, which is the first script."""
    begin, end = page.find("<script>"), page.find("</script>")
    return page if begin < 0 else page[:begin] + page[end + len("</script>") :]


class Page(HTMLParser):
    """What a browser would find: elements, texts, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.sound = True
        self.source = without_plotly(text)
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.sound &= tag in VOID

    def handle_endtag(self, tag: str) -> None:
        self.sound &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def charts(self) -> dict[str, dict[str, Any]]:
        """What is in each chart, by its description; JSON without NaN."""
        return {
            one["aria-label"]: json.loads(one["data-chart"], parse_constant=lambda name: 1 / 0)
            for one in self.all("div")
            if "data-chart" in one
        }

    def traces(self, description: str) -> dict[str, list[list[Any]]]:
        """Returns the points of each trace, by label, of the first chart that is described so."""
        chart = next(c for name, c in self.charts.items() if name.startswith(description))
        return {
            trace["label"]: [list(pair) for pair in zip(trace["x"], trace["y"], strict=True)]
            for trace in chart["traces"]
        }

    def rows(self, title: str) -> list[list[str]]:
        """Returns the cells of the rows of the table whose first column has this name."""
        tables = re.split(r"<table>", self.source)[1:]
        for table in tables:
            if re.search(rf"<th[^>]*>{re.escape(title)}</th>", table.partition("</tr>")[0]):
                rows = re.findall(r"<tr>(.*?)</tr>", table.partition("</table>")[0], re.DOTALL)
                cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
                return [[html.unescape(cell) for cell in row] for row in cells if row]
        return []


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def metrics(num_steps: int = 6) -> list[dict[str, Any]]:
    """Lines of a pre-training run with a step that was not finite, and lists by codebook."""
    records: list[dict[str, Any]] = []
    for step in range(10, 10 * num_steps + 1, 10):
        loss = math.nan if step == 30 else 3.0 - step / 100
        common = {"step": step, "epoch": step // 40, "elapsed_s": 2.0 * step}
        tags = {
            "train/loss": loss,
            "train/wavlm_loss": loss,
            "train/wavlm_masked_accuracy": step / 1000,
            "train/wavlm_baseline_accuracy": 0.03,
            "optim/learning_rate": 0.045,
            "data/audio(hours)": step / 20,
            "memory/max_reserved(GiB)": 61.5,
            "health/skipped_steps": 0,
        }
        records.append({**common, **tags})
        if step % 20 == 0:
            valid = {
                "valid/loss": loss - 0.1,
                "valid/wavlm_codebook_masked_loss(nats)": [loss + k for k in range(4)],
                "valid/wavlm_codebook_unigram_entropy(nats)": [5.0] * 4,
            }
            records.append({**common, **valid})
    return records


def make_run(folder: Path, records: list[dict[str, Any]] | None = None) -> Path:
    write_lines(folder / "metrics.jsonl", metrics() if records is None else records)
    (folder / "config.yaml").write_text(
        "teachers: {wavlm: {role: speech}}\ntrain: {max_steps: 100, output_dir: x}\n"
    )
    state = folder / "checkpoints" / "step-00000060" / "state.json"
    state.parent.mkdir(parents=True)
    content = {"position": {"step": 60, "epoch": 1, "audio_s": 10800.0}, "batches_in_step": 4}
    state.write_text(json.dumps({**content, "elapsed_s": 120.0, "torch_version": "2.99"}))
    return folder


def process(id_: str, command: str, **fields: Any) -> dict[str, Any]:
    """Returns the last line of a process in the ledger."""
    line = {
        "id": id_,
        "event": "end",
        "command": command,
        "started": "2026-01-01T10:00:00+00:00",
        "wall_s": 3600.0,
        "cpu_s": 7200.0,
        "cpu": "A CPU",
        "cpu_cores": 16,
        "gpu": None,
        "num_gpus": 0,
        "gpu_hours": 0.0,
        "energy_wh": None,
        "num_measured_gpus": 0,
        "audio_hours": 10.0,
        "exit_status": 0,
        "beat_s": 600.0,
        "spear_version": "0.9",
        "notes": {},
    }
    return {**line, **fields}
