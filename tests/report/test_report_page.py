"""`spear report`: the page says what the files say, whatever is missing, and loads nothing."""

import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
from run_folders import Page, make_run, metrics, process, write_lines

from spear.errors import ConfigError, DataError, MissingPackageError
from spear.report.command import ReportConfig, make_page, run

EVIL = "cut-<script>alert(1)</script>"


def page_of(folder: Path) -> Page:
    page = Page(make_page([folder]))
    assert page.sound
    assert not page.open
    return page


def make_recipe(folder: Path) -> Path:
    """A recipe's exp folder with its data folder beside it."""
    exp = folder / "exp"
    make_run(exp / "pretrain")
    write_lines(exp / "pretrain" / "ledger.jsonl", [process("a", "pretrain", gpu_hours=8.0)])
    scores = {"wer": 3.4221, "cer": 0.87, "ins": 0, "del": 1, "sub": 9, "num_words": 263}
    decode = exp / "asr" / "decode" / "summary.json"
    write_lines(decode, [{"weights": "averaged", "splits": {"test": scores}}])
    quantizer = {"id": "97", "num_codebooks": 16, "codebook_size": 256, "relative_error": 0.0122}
    write_lines(exp / "quantizers" / "wavlm" / "summary.json", [quantizer])
    (exp / "quantizers" / "wavlm" / "usage.png").write_bytes(b"\x89PNG picture")
    shards = folder / "data" / "train"
    write_lines(shards / "shards.json", [{"num_cuts": 480, "duration_s": 7200.0}])
    sidecar = {
        "teacher": "wavlm",
        "layer": None,
        "frame_rate_hz": 50.0,
        "weights_sha256": "0",
        "quantizer_id": "97",
        "quantizer_sha256": "1",
        "num_codebooks": 16,
        "codebook_size": 256,
        "teacher_identity": {},
        "shards": {"000000": {"num_cuts": 480, "num_frames": 43968, "sha256": "2"}},
        "format_version": 1,
    }
    write_lines(shards / "wavlm_tokens.json", [sidecar])
    (shards / "verify.md").write_text("# Verification\n\nNo problems.\n")
    write_lines(shards / "ledger.jsonl", [process("b", "shard", audio_hours=2.0)])
    return exp


def test_the_curves_are_the_metrics(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    expected = [
        [r["step"], round(r["train/loss"], 5) if math.isfinite(r["train/loss"]) else None]
        for r in metrics()
        if "train/loss" in r
    ]
    points = page.traces("loss by step")
    assert points["train"] == expected
    valid = [[r["step"], round(r["valid/loss"], 5)] for r in metrics() if "valid/loss" in r]
    assert points["valid"] == valid
    memory = page.traces("memory: max reserved in GiB by step")
    assert [value for _, value in memory[""]] == [61.5] * 6
    accuracy = page.traces("masked accuracy by step")
    assert accuracy["baseline accuracy"] == [[step, 0.03] for step in range(10, 61, 10)]


def test_the_state_of_a_run(tmp_path: Path) -> None:
    text = page_of(make_run(tmp_path / "run")).text
    for fact in (
        "60 of 100 (not complete)",
        "epochs begun 2",
        "audio seen 3 h",
        "time 2 min 0 s",
        "skipped steps 0",
        "batches in a step 4",
        "torch 2.99",
        "last checkpoint step-00000060",
        "0 throughout: health: skipped steps.",
        "max_steps: 100",
        "pre-training",
    ):
        assert fact in text


def test_lists_by_codebook_are_drawn(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    bars = page.traces("masked loss in nats by codebook")
    assert bars["valid"][3] == [3, 5.4]
    assert bars["unigram entropy"] == [[k, 5] for k in range(4)]
    heat = page.charts["masked loss over steps in nats by codebook and step"]["traces"][0]
    assert heat["x"] == [20, 40, 60]
    assert [row[-1] for row in heat["y"]] == [2.4, 3.4, 4.4, 5.4]


def test_a_recipe_has_a_section_for_everything(tmp_path: Path) -> None:
    page = page_of(make_recipe(tmp_path))
    titles = [text for text in page.texts if text in page.text]
    for title in ("Word error rates", "pretrain", "Quantisers", "Data and tokens", "Versions"):
        assert title in titles
    assert "asr test averaged 3.42 0.87 263 0 1 9" in page.text
    assert "data/train 480 2.000 no problems wavlm 16 x 256, 50 Hz 43,968 97" in page.text
    assert "quantizers/wavlm 97 16 x 256 0.0122" in page.text
    assert "shard A CPU, 16 cores 1 1 h 0 min 2 2" in page.text
    assert "3.42 % WER, asr on test" in page.text
    images = page.all("img")
    assert [image["src"][:22] for image in images] == ["data:image/png;base64,"]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = Page(make_page([make_recipe(tmp_path)]))
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "audio", "video"}
        for name in ("src", "href", "data", "action", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", page.source)
    assert len(page.all("script")) == 1  # beside plotly.js
    policy = next(m for m in page.all("meta") if "http-equiv" in m)
    assert policy["content"].startswith("default-src 'none'")


def test_names_are_shown_and_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "run <b>"
    records = [{"step": 1, f"train/{EVIL}": 1.0, 'x/"><img src=x>(<i>)': 2.0}]
    make_run(folder, records)
    line = {"step": 5, "rank": 0, "loss_is_finite": False, "ids": [EVIL]}
    write_lines(folder / "bad_batches.jsonl", [line])
    (folder / "config.yaml").write_text(f"teachers: {{'{EVIL}': 1}}\n")
    write_lines(folder / "ledger.jsonl", [process("a", EVIL, cpu=EVIL, notes={EVIL: EVIL})])
    page = page_of(folder)
    assert len(page.all("script")) == 1
    assert page.all("b") == page.all("i") == page.all("img") == []
    assert EVIL in page.text


def test_skipped_steps_and_their_cuts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = [
        {
            "step": 30,
            "rank": rank,
            "loss_is_finite": rank != 1,
            "ids": [f"r{rank}-{i}" for i in range(10)],
        }
        for rank in range(2)
    ]
    gradient = {"step": 40, "rank": 0, "loss_is_finite": True, "ids": ["g"]}
    write_lines(folder / "bad_batches.jsonl", [*lines, gradient])
    page = page_of(folder)
    assert (
        "30 loss not finite 1 r1-0, r1-1, r1-2, r1-3, r1-4, r1-5, r1-6, r1-7 and 2 more"
        in page.text
    )
    assert "40 gradient, or a spike 0 g" in page.text
    assert "r0-0" not in page.text  # its loss was fine
    (section,) = (json.loads(one["data-marks"]) for one in page.all("div") if "data-marks" in one)
    assert section[0]["skip"] == {"30": "step 30 was skipped", "40": "step 40 was skipped"}


def test_restarts_are_marked(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    write_lines(
        folder / "ledger.jsonl",
        [
            process("a", "pretrain", exit_status=143, notes={"first_step": 0}),
            process("b", "pretrain", gpu="H200", num_gpus=8, num_ranks=8, notes={"first_step": 40}),
        ],
    )
    page = page_of(folder)
    assert "started 2 times" in page.text
    assert "ran on A CPU, 16 cores, then 8 processes, 8 x H200" in page.text
    (section,) = (json.loads(one["data-marks"]) for one in page.all("div") if "data-marks" in one)
    assert section[0]["restart"]["40"].startswith("started again at step 40, 2026")
    assert "stopped by signal 15 after 1 h 0 min" in page.text


def test_a_long_run_is_thinned(tmp_path: Path) -> None:
    records = [{"step": 50 * i, "train/loss": 2.0 + i % 7} for i in range(1, 8001)]
    records[4000]["train/loss"] = 99.0
    page = Page(make_page([make_run(tmp_path / "run", records)]))
    points = page.traces("loss by step")["train"]
    assert len(points) <= 601
    assert [200_050, 99.0] in points
    assert len(page.source) < 100_000


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_lines(folder / "metrics.jsonl", [])
    text = page_of(folder).text
    assert (
        "Not there: metrics.jsonl (no curves), config.yaml (no configuration), checkpoints" in text
    )
    assert "No ledger" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"- a list"),
        ("metrics.jsonl", b"\xff\xfe not text\n"),
        ("metrics.jsonl", b'{"step": 1, "train/loss": 2.0}\n5\n"x"\n{"step": 2, "train/lo'),
        ("metrics.jsonl", b'{"step": null, "train/loss": 2.0}\n{"step": 1}\n'),
        ("bad_batches.jsonl", b'{"step": "x", "ids": 5}\n{}\n'),
        ("ledger.jsonl", b'{"id": "a", "command": "c", "wall_s": "x", "notes": 3}\n{"id": 1}\n'),
        ("summary.json", b"{"),
        ("summary.json", b'{"splits": {"a": 5, "b": {}}}'),
        ("summary.json", b'{"num_codebooks": "x"}'),
        ("shards.json", b"[]"),
        ("wavlm_tokens.json", b"{broken"),
        ("checkpoints/step-00000060/state.json", b'{"position": 5, "elapsed_s": "x"}'),
    ],
)
def test_broken_files_do_not_stop_the_page(name: str, content: bytes, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    text = page_of(folder).text
    assert "Versions" in text
    if content in {b"a: [1", b"\xff\xfe not text\n", b"{"}:
        assert f"{name} cannot be read" in text


def test_a_run_names_its_data(tmp_path: Path) -> None:
    exp = make_recipe(tmp_path / "shared")
    folder = make_run(tmp_path / "elsewhere" / "run")
    shards = exp.parent / "data" / "train"
    (folder / "config.yaml").write_text(f"data: [{{path: {shards}}}, 5]\nvalid: [{shards}]\n")
    page = page_of(folder)
    assert "data/train 480 2.000" in page.text
    assert page.text.count("shard A CPU") == 1  # its ledger, once


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    run(ReportConfig([str(folder)]))
    first = (folder / "report.html").read_bytes()
    run(ReportConfig([str(folder)], str(tmp_path / "pages" / "a.html")))
    assert (tmp_path / "pages" / "a.html").read_bytes() == first
    assert sorted(os.listdir(tmp_path / "pages")) == ["a.html"]


def test_user_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="report of which folder"):
        run(ReportConfig())
    with pytest.raises(ConfigError, match="no such folder"):
        run(ReportConfig([str(tmp_path / "none")]))
    with pytest.raises(DataError, match="nothing to report on"):
        run(ReportConfig([str(tmp_path)]))
    folder = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        run(ReportConfig([str(folder)], str(tmp_path / "file" / "page.html")))


def test_points_are_json_without_nan(tmp_path: Path) -> None:
    records = [{"step": 1, "train/loss": math.inf}, {"step": 2, "train/loss": -math.inf}]
    page = page_of(make_run(tmp_path / "run", records))  # fails on NaN in `charts`
    assert page.traces("loss by step")["train"] == [[1, None], [2, None]]


def test_every_chart_is_understood(tmp_path: Path) -> None:
    """What the script looks at, and no more: roles, kinds, one x for each y."""
    charts = page_of(make_recipe(tmp_path)).charts.values()
    assert {chart["kind"] for chart in charts} == {"lines", "bars", "heat"}
    for chart in charts:
        assert set(chart) == {"title", "kind", "x", "log", "traces"}
        for trace in chart["traces"]:
            assert trace["role"] in {"train", "valid", "reference"}
            rows = trace["y"] if chart["kind"] == "heat" else [trace["y"]]
            assert all(len(row) == len(trace["x"]) for row in rows)


def test_links_lead_somewhere(tmp_path: Path) -> None:
    page = page_of(make_recipe(tmp_path))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.all("a")]
    assert len(links) == 6
    assert {f"#{name}" for name in ids} >= set(links)


def test_every_picture_can_be_read_aloud(tmp_path: Path) -> None:
    page = page_of(make_recipe(tmp_path))
    charts = [one for one in page.all("div") if "data-chart" in one]
    assert charts and all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert all(image["alt"] for image in page.all("img"))
    assert "loss by step: train ends at 2.4, valid ends at 2.3" in page.charts
    assert page.all("html") == [{"lang": "en"}]


def test_the_numbers_are_there_without_a_script(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    for value in ("memory/max reserved(GiB) 60 61.5", "train/loss 60 2.4", "60 of 100"):
        assert value in page.text
    assert len(page.all("noscript")) == 1


def test_plotly_is_there_once_and_only_where_it_draws(tmp_path: Path) -> None:
    exp = make_recipe(tmp_path)
    assert make_page([exp]).count("plotly.js v") == 1
    assert "plotly" not in make_page([exp / "asr"])


def test_runs_of_a_kind_are_laid_over_each_other(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name / "exp") for name in ("a", "b")]
    write_lines(folders[1] / "metrics.jsonl", metrics(4))
    text = (folders[1] / "config.yaml").read_text().replace("speech", "audio")
    (folders[1] / "config.yaml").write_text(text)
    page = Page(make_page(folders))
    assert "Pre-training 2 runs" in page.text
    chart = next(one for name, one in page.charts.items() if name.startswith("loss by step"))
    shown = [(trace["run"], trace["label"], trace["x"][-1]) for trace in chart["traces"]]
    assert shown == [(0, "train", 60), (0, "valid", 60), (1, "train", 40), (1, "valid", 40)]
    assert [box["data-run"] for box in page.all("input") if "data-run" in box] == ["0", "1"]
    assert [row[:2] for row in page.rows("run")] == [
        ["a/exp", "60 of 100 (not complete)"],
        ["b/exp", "40 of 100 (not complete)"],
    ]
    assert "What differs a/exp b/exp teachers.wavlm.role speech audio" in page.text
    heats = [name for name in page.charts if name.startswith("masked loss over steps, ")]
    assert [name.partition(" in ")[0] for name in heats] == [
        "masked loss over steps, a/exp",
        "masked loss over steps, b/exp",
    ]


def test_folders_within_each_other_are_shown_once(tmp_path: Path) -> None:
    exp = make_recipe(tmp_path)
    page = Page(make_page([exp, exp / "pretrain"]))
    assert [one for one in page.texts if one == "60 of 100 (not complete)"] == [
        "60 of 100 (not complete)"
    ]


def test_evaluations_of_taggers(tmp_path: Path) -> None:
    one = {
        "mean_average_precision": 0.39214, "mean_roc_area": 0.96123, "accuracy": None,
        "num_clips": 18000, "num_classes": 527, "weights": "averaged", "classes": {},
    }  # fmt: skip
    write_lines(tmp_path / "exp" / "large" / "evaluation" / "summary.json", [one])
    other = {**one, "mean_average_precision": 0.25, "accuracy": 0.875}
    write_lines(tmp_path / "exp" / "small" / "evaluation" / "summary.json", [other])
    page = page_of(tmp_path / "exp")
    assert page.rows("tagger") == [
        ["large", "averaged", "18,000", "527", "39.21", "", "0.9612"],
        ["small", "averaged", "18,000", "527", "25.00", "87.50", "0.9612"],
    ]
    assert "39.21 % highest mAP, large" in page.text


def test_without_the_packages_it_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingPackageError, match=r"spear report needs .* pip install jinja2"):
        run(ReportConfig([str(folder)]))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(MissingPackageError, match=r"charts of spear report .* pip install plotly"):
        run(ReportConfig([str(folder)]))
    assert not (folder / "report.html").exists()


def test_cards_show_what_one_looks_for_first(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    gpus = {"gpu": "H200", "num_gpus": 8, "num_measured_gpus": 8}
    lines = [process("a", "pretrain", gpu_hours=16.0, energy_wh=11500.0, **gpus)]
    write_lines(folder / "ledger.jsonl", lines)
    text = page_of(folder).text
    for card in ("60 steps", "3 h audio seen", "16 GPU hours", "11.5 kWh taken by GPUs"):
        assert card in text


def test_very_large_pictures_stay_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exp = make_recipe(tmp_path)
    monkeypatch.setattr("spear.report.command.MAX_PICTURE_BYTES", 3)
    assert page_of(exp).all("img") == []
