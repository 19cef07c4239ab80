"""What two processes must get right with shards, in one start of torchrun: a script, for the tests.

Each scenario leaves a checkpoint, or a number in `results-RANK.json`, that the test looks at.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from spear.optim import OptimConfig, ScaledAdam, build_optimizer
from spear.pretrain.collate import PretrainBatch
from spear.pretrain.losses import LossConfig
from spear.pretrain.model import PretrainModel, TeacherTarget
from spear.system.distributed import Ranks, join_ranks
from spear.system.weights import load_exact
from spear.training.checkpoints import checkpoint as checkpoints
from spear.training.checkpoints.averaging import RunningAverage
from spear.training.checkpoints.sharding import (
    finish_gradients,
    gather_on_main,
    gathered,
    local_bytes,
    shard_like,
    shard_model,
)
from spear.zipformer import ZipformerConfig, set_schedule

NUM_STEPS, HALF = 6, 3
# Cut for two processes: unevenly, to one element, to none; and one that cannot be cut.
SHAPES = {"w": (7, 3), "even": (4, 6), "row": (1, 5), "one": (1,), "b": (3,), "scale": ()}


def make_model(seed: int) -> PretrainModel:
    torch.manual_seed(seed)
    student = ZipformerConfig(
        feature_dim=32,
        downsampling_factor=(1, 2),
        encoder_dim=(32, 48),
        num_encoder_layers=(1, 1),
        encoder_unmasked_dim=(16, 24),
        num_heads=(2,),
        query_head_dim=(8,),
        value_head_dim=(8,),
        feedforward_dim=(48,),
        cnn_module_kernel=(7,),
        pos_dim=16,
        embed_channels=(4, 8, 16),
    )
    model = PretrainModel(student, {"wavlm": TeacherTarget("speech", 4, 16)}, LossConfig())
    set_schedule(model, 0.0)
    return model


def make_batch(step: int, rank: int, num_clips: int = 3) -> PretrainBatch:
    generator = torch.Generator().manual_seed(100 * step + rank)
    num_frames, num_out = 60, 30
    valid = torch.ones(num_clips, num_out, dtype=torch.bool)
    mask = torch.rand(num_clips, num_frames, generator=generator) < 0.4
    return PretrainBatch(
        ids=[f"cut-{i}" for i in range(num_clips)],
        audio_s=0.6 * num_clips,
        fbank=torch.randn(num_clips, num_frames, 32, generator=generator),
        fbank_lens=torch.full((num_clips,), num_frames),
        is_audio=torch.zeros(num_clips, dtype=torch.bool),
        mask=mask,
        channel_mask=torch.zeros(num_clips, 32, dtype=torch.bool),
        student_mask=mask[:, ::2],
        tokens={"wavlm": torch.randint(16, (num_clips, num_out, 4), generator=generator).byte()},
        token_valid={"wavlm": valid},
        valid_frames={"wavlm": valid.flatten().nonzero().squeeze(1)},
    )


class Run:
    """A training loop in small: what the trainer does with either kind of parallelism."""

    def __init__(self, ranks: Ranks, is_sharded: bool, bf16: bool = False) -> None:
        self.ranks, self.is_sharded, self.bf16 = ranks, is_sharded, bf16
        self.model = make_model(seed=ranks.rank)  # rank 0's weights are to count
        if is_sharded:
            shard_model(self.model, ranks, bf16)
        named = list(self.model.named_parameters())
        self.optimizer, self.scheduler = build_optimizer([{"named_params": named}], OptimConfig())
        self.average = RunningAverage(self.model)
        self.num_steps = 0

    def wrap(self) -> nn.Module:
        """Freezes the front end for two steps; DDP wants to be told."""
        self.model.encoder.encoder_embed.requires_grad_(self.num_steps >= 2)
        return self.model if self.is_sharded else DistributedDataParallel(self.model)

    def step(self, spoil: bool = False) -> float:
        """Does a step, every other one with two backward passes."""
        forward = self.wrap()
        torch.manual_seed(1000 * self.num_steps + self.ranks.rank)
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(1 + self.num_steps % 2):
            batch = make_batch(self.num_steps + 50 * part, self.ranks.rank, 2 + self.ranks.rank)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                term = forward(batch).terms["wavlm"]
            loss = term.total / term.count
            (loss * (float("nan") if spoil else 1.0)).backward()
            total += loss.detach()
        finish_gradients(self.model, self.ranks)
        self.optimizer.step()
        self.num_steps += 1
        self.scheduler.step_batch(self.num_steps)
        self.average.update(self.model)
        return float(self.ranks.all_reduce(total))

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "averaged": self.average.values,
            "optimizer": {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            },
        }
        whole = gather_on_main(state, self.ranks)
        if self.ranks.is_main:
            counts = {"num_averaged": self.average.num_updates}
            content = checkpoints.CheckpointContent(**whole, state=counts, config={})
            checkpoints.save_checkpoint(path, content)
        self.ranks.barrier()

    def load(self, path: Path, num_steps: int) -> None:
        whole = checkpoints.load_part(path, checkpoints.MODEL)
        load_exact(self.model, shard_like(whole, self.model.state_dict()), str(path))
        saved = checkpoints.load_optimizer(path)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        averaged = checkpoints.load_part(path, checkpoints.AVERAGED)
        num_averaged = checkpoints.load_state(path)["num_averaged"]
        self.average.load(shard_like(averaged, self.average.values), num_averaged)
        self.num_steps = num_steps

    def bytes(self) -> int:
        """Of parameters, optimiser and average on this rank."""
        states = (dict(self.model.named_parameters()), self.optimizer.state_dict())
        return local_bytes(states) + local_bytes(self.average.values)


def whole_run(ranks: Ranks, folder: Path, is_sharded: bool) -> dict[str, Any]:
    run = Run(ranks, is_sharded)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        losses.append(run.step())
        norms.append(float(run.optimizer.plain_grad_norm_tensor))
        if step + 1 == HALF:
            run.save(folder / "half")
    run.save(folder / "end")
    evaluated = validate(run)
    return {"losses": losses, "norms": norms, "bytes": run.bytes(), "evaluated": evaluated}


def validate(run: Run) -> float:
    """Every process has another number of batches."""
    run.model.eval()
    with torch.no_grad(), gathered(run.model):
        for step in range(1 + 2 * run.ranks.rank):
            output = run.model(make_batch(step, 0))
    run.model.train()
    run.step()  # nothing is left behind that a training step would stumble over
    return float(output.terms["wavlm"].total) if run.ranks.rank == 0 else 0.0


def go_on(ranks: Ranks, start: Path, end: Path, is_sharded: bool) -> list[float]:
    run = Run(ranks, is_sharded)
    run.load(start, HALF)
    losses = [run.step() for _ in range(NUM_STEPS - HALF)]
    run.save(end)
    return losses


def spoilt_step(ranks: Ranks) -> dict[str, bool]:
    """One rank's loss is not a number: no rank's weights or state may change."""
    run = Run(ranks, is_sharded=True)
    run.step()
    before = gather_on_main([run.model.state_dict(), run.optimizer.state_dict()], ranks)
    run.step(spoil=ranks.rank == 1)
    after = gather_on_main([run.model.state_dict(), run.optimizer.state_dict()], ranks)
    same = [torch.equal(a, b) for a, b in zip(tensors(before), tensors(after), strict=True)]
    happened = bool(run.optimizer.happened_tensor)
    run.step()
    return {"same": all(same), "happened": happened, "next": bool(run.optimizer.happened_tensor)}


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, dict):
        return [t for value in tree.values() for t in tensors(value)]
    if isinstance(tree, list):
        return [t for value in tree for t in tensors(value)]
    return [tree] if isinstance(tree, Tensor) else []


def optimizer_apart(is_sharded: bool) -> dict[str, Tensor]:
    """ScaledAdam on shards of every odd kind, or on whole parameters."""
    generator = torch.Generator().manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))

    def placed(value: Tensor) -> Tensor:
        if not is_sharded or value.ndim == 0:
            return value
        return distribute_tensor(value, mesh, [Shard(0)])

    initial = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    parameters = {name: nn.Parameter(placed(value)) for name, value in initial.items()}
    groups = [
        {"named_params": [item for item in parameters.items() if item[0] != "even"]},
        {"named_params": [("even", parameters["even"])], "lr_scale": 0.5},
    ]
    optimizer = ScaledAdam(groups, lr=0.04)
    for step in range(25):
        for parameter in parameters.values():
            size = 50.0 if step == 20 else 1.0
            parameter.grad = placed(torch.randn(parameter.shape, generator=generator) * size)
        optimizer.step()
        if step == 11:  # whole tensors are what a checkpoint holds
            saved = gather_on_main(optimizer.state_dict(), Ranks(torch.device("cpu"), 0, 2))
            optimizer = ScaledAdam(groups, lr=0.04)
            optimizer.load_state_dict(saved)
    values = {name: parameter.detach() for name, parameter in parameters.items()}
    numbers = {"norm": optimizer.grad_norm_tensor, "factor": optimizer.clip_factor_tensor}
    return {**gather_on_main(values, Ranks(torch.device("cpu"), 0, 2)), **numbers}


def main() -> None:
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    with join_ranks("cpu", "gloo") as ranks:
        results: dict[str, Any] = {
            "ddp": whole_run(ranks, root / "ddp", is_sharded=False),
            "fsdp": whole_run(ranks, root / "fsdp", is_sharded=True),
            "fsdp to ddp": go_on(ranks, root / "fsdp/half", root / "fsdp_ddp", is_sharded=False),
            "ddp to fsdp": go_on(ranks, root / "ddp/half", root / "ddp_fsdp", is_sharded=True),
            "fsdp to fsdp": go_on(ranks, root / "fsdp/half", root / "fsdp_fsdp", is_sharded=True),
            "spoilt": spoilt_step(ranks),
        }
        narrow = Run(ranks, is_sharded=True, bf16=True)
        results["bf16"] = [narrow.step() for _ in range(NUM_STEPS)]
        for name, is_sharded in (("whole", False), ("shards", True)):
            torch.save(optimizer_apart(is_sharded), root / f"optimizer-{name}-{ranks.rank}.pt")
        (root / f"results-{ranks.rank}.json").write_text(json.dumps(results))
        dist.barrier()


if __name__ == "__main__":
    main()
