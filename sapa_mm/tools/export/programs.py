"""Makes a program of a subject, writes it to a file and verifies that."""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops.decompositions import decompositions
from ..complexity.command import size_text
from ..configs import reason
from ..output import write_atomically
from .subjects import Subject

# Where a model cannot have any size, sizes are multiples of this.
MULTIPLE = 32

Shape = tuple[int, int, int]  # batch, height, width


class ExportError(Exception):
    """Says why a subject cannot be exported, or how its file is not what it should be."""


class Attempt(NamedTuple):
    """Describes a way to trace a subject.

    Attributes:
        free: What is free, in words.
        shape: Shape of the inputs while tracing.
        axes: The free dimensions of an input, as `torch.export` takes them.
        checks: Shapes to verify at.
    """

    free: str
    shape: Shape
    axes: Mapping[int, Any]
    checks: list[Shape]

    @property
    def in_steps(self) -> bool:
        """Tell whether sizes are multiples of `MULTIPLE`."""
        return any(getattr(axis, 'fn', None) == MULTIPLE for axis in self.axes.values())


class Traced(NamedTuple):
    """Holds a subject's program in PyTorch's own operators.

    Attributes:
        program: The program.
        free: What is free, in words.
        checks: Shapes to verify at.
    """

    program: torch.export.ExportedProgram
    free: str
    checks: list[Shape]


def multiple_above(value: int) -> int:
    """Return the smallest multiple that is larger than ``value``."""
    return (value // MULTIPLE + 1) * MULTIPLE


def attempts(size: tuple[int, int], static: bool) -> Iterator[Attempt]:
    """Yield the ways to trace a subject, in the order to try them.

    Args:
        size: (H, W) that the user wants.
        static: Whether nothing shall be free.
    """
    height, width = size
    given = (1, height, width)
    if static:
        yield Attempt('nothing: one image of the given size', given, {}, [given])
        return
    free = torch.export.Dim.DYNAMIC
    # They differ and nothing divides them, so that no two are taken for one.
    odd = [multiple_above(n) + 1 for n in size]
    if odd[0] == odd[1]:
        odd[1] += MULTIPLE
    change = -2 * (MULTIPLE - 3) if min(odd) > 4 * MULTIPLE else 6
    traced, other = (odd[0], odd[1]), (odd[0] + change, odd[1] + change)
    sides = {2: free, 3: free}
    yield Attempt('batch, height and width', (2, *traced), {0: free, **sides}, [given, (3, *other)])
    yield Attempt('height and width', (1, *traced), sides, [given, (1, *other)])
    steps = {axis: MULTIPLE * torch.export.Dim(name) for axis, name in ((2, 'h'), (3, 'w'))}
    given = (1, -(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE)
    even = (1, odd[0] - 1, odd[1] - 1)
    larger = (1, odd[0] - 1 + MULTIPLE, odd[1] - 1)
    what = f'height and width, in multiples of {MULTIPLE}'
    yield Attempt(what, even, steps, [given, larger])


def forget_coincidences(program: torch.export.ExportedProgram) -> None:
    """Drop what a program asserts of sizes that are not equal.

    The tracer asks it of every slice, to know how it lies in memory, and takes the example's answer
    for a condition. Where one size must be at least another that stays.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            condition = node.args[0]
            if getattr(condition, 'target', None) is torch.sym_not:
                graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def trace_at(subject: Subject, attempt: Attempt) -> torch.export.ExportedProgram:
    """Export a subject in one of the ways to do it; what does not allow that raises anything."""
    extra: dict[str, Any] = {'strict': False}
    deferred = 'prefer_deferred_runtime_asserts_over_guards'
    if deferred in inspect.signature(torch.export.export).parameters:
        # Sizes may be compared, as with "at least as large as"; that does not fix them.
        extra[deferred] = True
    axes = tuple(dict(attempt.axes) for _ in subject.inputs) if attempt.axes else None
    inputs = subject.make(*attempt.shape)
    program = torch.export.export(subject.model, inputs, dynamic_shapes=axes, **extra)
    program = program.run_decompositions(decompositions())
    forget_coincidences(program)
    return program


def trace(subject: Subject, size: tuple[int, int], static: bool) -> Traced:
    """Export a subject to a program that has as much free as it allows.

    Args:
        subject: The subject.
        size: (H, W) that the user wants.
        static: Whether nothing shall be free.

    Raises:
        ExportError: It cannot be exported.
    """
    problem = None
    for attempt in attempts(size, static):
        if problem:
            print(f'trying with free {attempt.free}: {problem}', file=sys.stderr, flush=True)
        # An upsampler's sizes are no multiples of each other: what is free there is free.
        if len(subject.inputs) > 1 and attempt.in_steps:
            break
        try:
            return Traced(trace_at(subject, attempt), attempt.free, attempt.checks)
        except Exception as error:  # of whatever kind: the model is the user's
            problem = reason(error)
    raise ExportError(f'{subject.name} cannot be exported: {problem}')


def write_onnx(
    program: torch.export.ExportedProgram, subject: Subject, path: Path, opset: int | None
) -> str:
    """Write an ONNX file.

    Args:
        program: What to write.
        subject: What it computes.
        path: File to write.
        opset: Version of ONNX's operators. None: the exporter's.

    Returns:
        A line on its operators.

    Raises:
        ExportError: An operator that is none of ONNX's, or none that the exporter knows.
    """
    import onnx

    try:
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(subject.inputs),
            output_names=[subject.output],
        )
    except Exception as error:
        raise ExportError(f'{subject.name} cannot be written in ONNX: {reason(error)}') from error
    assert written is not None  # it is None of the exporter without dynamo alone
    written.save(str(path), external_data=False)
    model = onnx.load(str(path))
    onnx.checker.check_model(model, full_check=True)
    foreign = {f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain}
    foreign |= {f'{f.domain}::{f.name}' for f in model.functions}
    if foreign:
        raise ExportError(
            f'{subject.name} cannot be written in standard ONNX: it needs '
            f'{", ".join(sorted(foreign))}'
        )
    counts = Counter(node.op_type for node in model.graph.node)
    listed = ', '.join(f'{kind} {number}' for kind, number in counts.most_common())
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    return f'{counts.total()} nodes of opset {version}: {listed}'


def runner(path: Path) -> Callable[..., Tensor] | None:
    """Return what runs a written file; None where there is nothing to run it."""
    if path.suffix == '.pt2':
        return torch.export.load(str(path)).module()
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def verify_at(subject: Subject, run: Callable[..., Tensor], shape: Shape, tolerance: float) -> str:
    """Compare a file with PyTorch at one shape.

    Args:
        subject: What the file shall compute.
        run: What runs the file.
        shape: The shape.
        tolerance: Largest difference, as a share of the largest output.

    Returns:
        A line on the difference.

    Raises:
        ExportError: They differ, or the file does not run.
    """
    batch, *size = shape
    text = f'{size_text(size)}, batch {batch}'
    inputs = subject.make(*shape)
    with torch.no_grad():
        expected = subject.model(*inputs)
        try:
            got = run(*inputs)
        except Exception as error:
            raise ExportError(
                f'{subject.name}: the file fails at {text}: {reason(error)}'
            ) from error
    if got.shape != expected.shape:
        raise ExportError(
            f'{subject.name}: the file gives {tuple(got.shape)} at {text}, PyTorch '
            f'{tuple(expected.shape)}'
        )
    difference = (got - expected).abs().max().item()
    scale = expected.abs().max().item()
    if not difference <= tolerance * scale:
        raise ExportError(
            f'{subject.name}: the file differs by {difference:.2e} at {text}, where the '
            f'largest output is {scale:.2e}; tolerated: {tolerance:g} of it'
        )
    return f'verified at {text}: largest difference {difference:.2e} of {scale:.2e}'


def verify(subject: Subject, path: Path, shapes: Sequence[Shape], tolerance: float) -> list[str]:
    """Compare a file with PyTorch.

    Returns:
        A line a shape, or one that says why there is nothing to compare.

    Raises:
        ExportError: They differ, or the file does not run.
    """
    run = runner(path)
    if run is None:
        return ['not verified: that needs onnxruntime, pip install onnxruntime']
    return [verify_at(subject, run, shape, tolerance) for shape in shapes]


def export(
    subject: Subject,
    size: tuple[int, int],
    out: Path,
    *,
    static: bool,
    opset: int | None,
    tolerance: float,
) -> list[str]:
    """Write the file of a subject, verified.

    Args:
        subject: The subject.
        size: (H, W) that it shall take.
        out: File to write; the suffix gives the format.
        static: Whether it shall take no other size.
        opset: Version of ONNX's operators. None: the exporter's.
        tolerance: Largest difference from PyTorch, as a share of the largest output.

    Returns:
        Lines on what was written and verified.

    Raises:
        ExportError: It cannot be exported, or the file differs from PyTorch; there is no file.
    """
    try:
        with torch.no_grad():
            subject.model(*subject.make(1, *size))
    except Exception as error:  # of whatever kind: the model is the user's
        raise ExportError(
            f'{subject.name} does not take {size_text(size)}: {reason(error)}'
        ) from error
    traced = trace(subject, size, static)
    lines = [f'free: {traced.free}', *subject.notes]

    def write(path: Path) -> None:
        if path.suffix == '.onnx':
            lines.append(write_onnx(traced.program, subject, path, opset))
        else:
            torch.export.save(traced.program, str(path))
        lines.extend(verify(subject, path, traced.checks, tolerance))

    write_atomically(out, write)
    return lines
