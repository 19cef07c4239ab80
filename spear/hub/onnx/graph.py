"""A Zipformer as one ONNX graph, and the same graph with 8-bit weights.

Takes log-mel features of any number and length, gives what the model gives. torch's exporter over
`torch.export` makes it, which has symbols where lengths are. The older one (`dynamo=False`) traces
an example and keeps its lengths wherever a shape is computed: its file fails on any other length.
"""

import ast
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spear.errors import CheckpointError, one_line
from spear.system.optional import require
from spear.zipformer import Zipformer
from spear.zipformer.subsampling import LOG_EPS

INPUTS = ("x", "x_lens")
OPSET, IR_VERSION = 18, 9
"""What onnxruntime 1.16 and everything newer reads."""
MAX_BYTES = 15 << 27
"""Weights above 1.9 GiB go into a file of their own: one protobuf file holds 2."""
_PURPOSE = "ONNX export"
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Under which name the exporter notes down a node's modules, from the outside in, and the node."""
_KEPT_LAYER = "zipformer.encoder_embed/"
_EXTRA_FRAMES = 8
_EXAMPLE_SHAPE = (5, 203)


class OnnxGraph(nn.Module):
    """What is exported: features to frames, without a branch on lengths.

    Args:
        zipformer: In evaluation mode, on the CPU.
        head: What maps its frames (N, T', D) to the output; none leaves them as they are.
    """

    def __init__(self, zipformer: Zipformer, head: nn.Module | None = None) -> None:
        super().__init__()
        self.zipformer = zipformer
        self.head = head
        self.num_extra = _EXTRA_FRAMES // (2 * zipformer.config.output_downsampling_factor)
        self.eval()

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Maps features and their lengths to the output and its lengths.

        Args:
            x: (N, T, M) float32, T >= 1; padding may hold anything.
            x_lens: (N,) int64, valid frames.

        Returns:
            (N, T', D) float32 and (N,) int64.
        """
        # With frames to spare even a single one reaches the end of the front end.
        longer = F.pad(x, (0, 0, 0, _EXTRA_FRAMES), value=LOG_EPS)
        encoded = self.zipformer(longer, x_lens)
        output = encoded.output[:, : -self.num_extra]
        return (output if self.head is None else self.head(output)), encoded.lens


def write_onnx(
    graph: OnnxGraph, path: Path, outputs: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Writes a graph as an ONNX file; weights above `MAX_BYTES` go into `path`.data beside it.

    Args:
        graph: What to write.
        path: The file.
        outputs: Names of the two outputs.
        metadata: Properties that the file carries.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
        CheckpointError: Their versions, or torch's, cannot export it.
    """
    onnx = require("onnx", _PURPOSE)
    operators = require("onnxscript", _PURPOSE).opset18
    optimizer = require("onnxscript.optimizer", _PURPOSE)

    def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
        # Four times as fast in onnxruntime as its Softplus, and as exact: |x| does not overflow.
        assert beta == 1.0, beta
        log_sigmoid = operators.Log(operators.Sigmoid(operators.Abs(x)))
        return operators.Sub(operators.Relu(x), log_sigmoid)

    with torch.no_grad(), _quiet(), _explained():
        program = torch.onnx.export(
            _capture(graph),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=outputs,
            custom_translation_table={torch.ops.aten.softplus.default: softplus},
            verbose=False,
        )
        assert program is not None
        # The exporter leaves what it makes of large weights to be computed in every run.
        optimizer.optimize(program.model, input_size_limit=MAX_BYTES, output_size_limit=MAX_BYTES)
    program.save(path, external_data=is_split(graph))
    model = onnx.load(path, load_external_data=False)
    _clean(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def is_split(graph: OnnxGraph) -> bool:
    """Whether the weights are too large for the file of the graph."""
    return sum(parameter.nbytes for parameter in graph.parameters()) > MAX_BYTES


def write_int8(source: Path, path: Path) -> None:
    """Writes an ONNX file again with the weights of its matrix products as 8-bit integers.

    Weights get a scale for every output channel, and use 7 of their 8 bits, as sums of products of
    whole ones overflow on processors without VNNI instructions. What they are multiplied with gets
    one scale for the whole tensor in every run, so batch mates have a small influence. The front
    end's last layer stays as it is: what it sees is not normalised, and it would make several times
    the error of all other layers together.

    Args:
        source: What `write_onnx` wrote.
        path: The new file.

    Raises:
        MissingPackageError: onnxruntime is not installed.
    """
    onnx, quantization = (require(name, _PURPOSE) for name in ("onnx", "onnxruntime.quantization"))
    nodes = onnx.load(source, load_external_data=False).graph.node
    kept = [node.name for node in nodes if node.name.startswith(_KEPT_LAYER)]
    assert kept, "the exporter names no modules"
    with _quiet():
        quantization.quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul"],
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=kept,
        )


def _capture(graph: OnnxGraph) -> torch.export.ExportedProgram:
    """Runs the graph once with symbols for lengths.

    Given the graph itself, `torch.onnx.export` would try again by other means where these fail,
    and some of them take what is equal in the example to be equal always.
    """
    batch, time = _EXAMPLE_SHAPE
    example = torch.zeros(batch, time, graph.zipformer.config.feature_dim)
    dynamic = torch.export.Dim.DYNAMIC
    return torch.export.export(
        graph,
        (example, torch.full((batch,), time)),
        dynamic_shapes={"x": {0: dynamic, 1: dynamic}, "x_lens": {0: dynamic}},
        strict=False,
    )


def _clean(model: Any) -> None:
    """Names what is dynamic, and nodes after their modules.

    Takes out stack traces, and shapes of tensors that the exporter has outdated.
    """
    model.ir_version = IR_VERSION
    del model.graph.value_info[:]
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        modules = ast.literal_eval(notes.get(_SCOPES, "['', '']"))
        node.name = f"{modules[-2]}/{node.name}"
        del node.metadata_props[:]
    for values, time in ((model.graph.input, "T"), (model.graph.output, "T_out")):
        for value in values:
            del value.metadata_props[:]
            for dim, name in zip(value.type.tensor_type.shape.dim, ("N", time), strict=False):
                dim.dim_param = name


@contextmanager
def _explained() -> Iterator[None]:
    """Says what to do where the exporter fails, which is a matter of versions."""
    try:
        yield
    except Exception as error:  # those of torch.export and torch.onnx share no base class
        raise CheckpointError(
            f"torch {torch.__version__} cannot export this model ({one_line(error)}): install the "
            "versions of torch, onnx and onnxscript that requirements.txt names"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporters have to say to their own authors."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
