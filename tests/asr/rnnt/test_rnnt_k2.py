"""The choice of k2's losses, and what the adapter makes of its arguments; k2 itself is by hand."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spear.asr.rnnt import losses as rnnt
from spear.errors import MissingPackageError

ADAPTER = Path(rnnt.__file__).with_name("k2.py")


def split(boundary):
    """Returns frames and labels of k2's (B, 4) table, whose lattices all begin at 0."""
    assert boundary.dtype == torch.int64
    assert boundary[:, :2].eq(0).all()
    return boundary[:, 3], boundary[:, 2]


@pytest.fixture
def k2(monkeypatch):
    """A module with k2's signatures, as its version 1.23.4 has them, and our numbers."""
    module = ModuleType("k2")
    module.calls = []

    def smoothed(
        *, lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale, boundary, reduction,
        return_grad,
    ):  # fmt: skip
        assert return_grad
        module.calls.append("smoothed")
        return rnnt.rnnt_loss_smoothed(
            am, lm, symbols, *split(boundary), blank=termination_symbol,
            am_scale=am_only_scale, lm_scale=lm_only_scale, reduction=reduction,
        )  # fmt: skip

    def ranges(*, px_grad, py_grad, boundary, s_range):
        module.calls.append("ranges")
        assert 1 <= px_grad.shape[1] <= py_grad.shape[2], "k2's own limit"
        return rnnt.prune_ranges(px_grad, py_grad, *split(boundary), s_range)

    def pruning(*, am, lm, ranges):
        module.calls.append("prune")
        return rnnt.prune(am, lm, ranges)

    def pruned(*, logits, symbols, ranges, termination_symbol, boundary, reduction):
        module.calls.append("pruned")
        sizes = split(boundary)
        return rnnt.rnnt_loss_pruned(
            logits, symbols, ranges, *sizes, blank=termination_symbol, reduction=reduction
        )

    def full(*, logits, symbols, termination_symbol, boundary, reduction):
        module.calls.append("full")
        sizes = split(boundary)
        return rnnt.rnnt_loss(
            logits, symbols, *sizes, blank=termination_symbol, reduction=reduction
        )

    module.rnnt_loss_smoothed, module.get_rnnt_prune_ranges = smoothed, ranges
    module.do_rnnt_pruning, module.rnnt_loss_pruned, module.rnnt_loss = pruning, pruned, full
    monkeypatch.setitem(sys.modules, "k2", module)
    yield module
    forget()


def forget():
    """Lets the adapter be imported anew."""
    sys.modules.pop("spear.asr.rnnt.k2", None)
    vars(sys.modules["spear.asr.rnnt"]).pop("k2", None)


def run_all(num_frames, num_labels, backend, dtype=torch.float32):
    """Runs all five functions; the last id is the blank."""
    torch.manual_seed(1)
    am = torch.randn(2, num_frames, 6).to(dtype)
    lm = torch.randn(2, num_labels + 1, 6).to(dtype)
    symbols = torch.randint(0, 5, (2, num_labels))
    sizes = (
        torch.tensor([num_frames, num_frames - 1]),
        torch.tensor([num_labels, min(num_labels, 1)]),
    )
    options = {"blank": 5, "reduction": "none", "backend": backend}
    simple, shares = rnnt.rnnt_loss_smoothed(
        am, lm, symbols, *sizes, am_scale=0.1, lm_scale=0.2, **options
    )
    ranges = rnnt.prune_ranges(*shares, *sizes, 3, backend=backend)
    am_kept, lm_kept = rnnt.prune(am, lm, ranges, backend=backend)
    pruned = rnnt.rnnt_loss_pruned(am_kept + lm_kept, symbols, ranges, *sizes, **options)
    full = rnnt.rnnt_loss(am.unsqueeze(2) + lm.unsqueeze(1), symbols, *sizes, **options)
    return simple, *shares, ranges, pruned, full


def test_all_five_are_called_with_the_same_meaning(k2):
    for found, expected in zip(run_all(9, 4, "k2"), run_all(9, 4, "torch"), strict=True):
        assert torch.equal(found, expected)
    assert k2.calls == ["smoothed", "ranges", "prune", "pruned", "full"]


def test_more_labels_than_frames_are_no_error(k2):
    for found, expected in zip(run_all(3, 5, "k2"), run_all(3, 5, "torch"), strict=True):
        assert torch.equal(found, expected)
    assert "ranges" not in k2.calls


def test_k2_is_not_asked_about_batches_without_a_label(k2):
    """It would stop at an assertion."""
    for found, expected in zip(run_all(4, 0, "k2"), run_all(4, 0, "torch"), strict=True):
        assert torch.equal(found, expected)
    assert k2.calls == []


def test_half_precision_arrives_as_float32(k2):
    simple, *_, pruned, full = run_all(9, 4, "k2", torch.bfloat16)
    assert simple.dtype == pruned.dtype == full.dtype == torch.float32


def test_the_adapter_imports_torch_and_k2_alone():
    tree = ast.parse(ADAPTER.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    assert names == {"torch", "k2"}


def test_the_adapter_has_the_same_functions(k2):
    from spear.asr.rnnt import k2 as rnnt_k2

    for name in (
        "rnnt_loss_smoothed",
        "prune_ranges",
        "prune",
        "rnnt_loss_pruned",
        "rnnt_loss",
    ):
        assert callable(getattr(rnnt_k2, name))


def test_a_missing_k2_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    forget()
    with pytest.raises(MissingPackageError, match=r"pip install k2.*backend torch"):
        run_all(9, 4, "k2")


@pytest.fixture
def script(repo_dir, monkeypatch):
    """`local/checks/k2_losses.py`, with its smallest cases."""
    spec = importlib.util.spec_from_file_location(
        "k2_losses", repo_dir / "local/checks/k2_losses.py"
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "k2_losses", module)
    spec.loader.exec_module(module)
    chosen = ("small", "both scales")
    monkeypatch.setattr(module, "CASES", {name: module.CASES[name] for name in chosen})
    return module


def test_the_script_compares_what_the_adapter_gives(k2, script, tmp_path, capsys):
    path = tmp_path / "k2.pt"
    script.write_reference(path)
    assert set(k2.calls) == {"smoothed", "ranges", "prune", "pruned", "full"}
    assert script.compare(path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("agrees: small: losses by 0.0e+00")
    assert lines[0].endswith("100.00% of the windows are the same")


@pytest.mark.parametrize("name", ["pruned", "gradient full lm", "share px"])
def test_the_script_sees_a_difference(k2, script, tmp_path, name):
    path = tmp_path / "k2.pt"
    script.write_reference(path)
    stored = torch.load(path, weights_only=True)
    stored["small"]["found"][name][0] *= 1.001
    torch.save(stored, path)
    assert script.compare(path) == 1
