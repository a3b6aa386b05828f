"""One step of stochastic training: a loss and its gradient, on the fastest available engine.

The loss of a variational method draws random numbers at each evaluation. The engines are C code
(``native``), if everything is float64 and the random draws do not depend on the parameters (noise
that the parameters scale and shift); the traced graph, run by torch without Pyro and autograd
(``graph``), for networks, whose matrix products are fastest in torch; the same graph compiled by
Inductor (``inductor``), for many steps; and the loss itself (``eager``). Each engine draws new
random numbers at every step: the native step reads new noise, and the graph contains the
operations that draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from probdl.compile.codegen.emit import emit
from probdl.compile.codegen.statements import UnsupportedError, laid_out, real
from probdl.compile.engine import MAX_STATEMENTS
from probdl.compile.kernels.noise import NoiseSpec, draw_noise, random_key, specify_noise
from probdl.compile.runtime import cache
from probdl.compile.runtime.native_density import NativeDensity
from probdl.compile.runtime.toolchain import CompilerError
from probdl.compile.tracing.caught import catches_failures
from probdl.compile.tracing.trace import (
    CaughtError,
    UntraceableError,
    WriteError,
    trace_function,
    written_tensors,
)
from probdl.compile.verify import MismatchError
from probdl.compile.workload import Workload
from probdl.errors import ModelError, ProbdlError
from probdl.findings import Finding
from probdl.io.surroundings import surroundings
from probdl.model.advice import where
from probdl.model.recorder import ControlFlowError, erase_unused, record
from probdl.util.clock import time_left
from probdl.util.openmp import Threads

__all__ = ["BLOCK", "Loss", "Parameters", "Step", "choose_step"]

aten = torch.ops.aten

BLOCK = 100  # steps whose noise is drawn at once
_MIN_INDUCTOR_STEPS = 12_000  # Inductor compiles for seconds, and saves half a millisecond a step
_INDUCTOR_TIME_S = 120.0  # ours: a time limit below which compiling would take much of it
_MAX_NATIVE_MULTIPLICATIONS = 1_000_000  # in matrix products; for more, torch is faster than C


Stream = tuple[int, int] | None


class ForeignWriteError(UntraceableError):
    """A step writes to a tensor that belongs to the caller."""


class StateError(UntraceableError):
    """A model has a state that is no tensor, such as a counter of its calls."""


_REMEDIES: dict[type[Exception], str] = {  # for other exceptions there is nothing to advise
    ForeignWriteError: "Make the model a torch.nn.Module that holds the network; the fit trains a "
    "copy of it.",
    StateError: "Leave counters out of model and guide. SVI(kl_annealing=) changes the weight of "
    "the KL term.",
    CaughtError: CaughtError.remedy,
    ControlFlowError: "Replace `if` on the value of a site or a parameter by torch.where(), and do "
    "not use .item().",
    WriteError: "Collect values in a list and join them by torch.stack() or torch.cat(), instead "
    "of writing to parts of a tensor.",
    MismatchError: "The results are correct, but slower to compute. Please report the model.",
}


class Loss(Protocol):
    """A loss that runs backward and returns its value, or a list of it and other quantities.

    Attributes:
        buffers: tensors that it owns and may write to, such as running statistics.
    """

    @property
    def buffers(self) -> list[Tensor]: ...  # noqa: D102

    def __call__(
        self, values: Sequence[Tensor], data: Sequence[Tensor], *, traced: bool = False
    ) -> Any:
        """Evaluate at parameters and data, and accumulate the gradient in the parameters.

        With ``traced``, operations are being recorded, so the loss must not read any value.
        """


class Parameters:
    """The trained tensors, all of them views of one flat vector.

    Attributes:
        flat: the vector (d,).
        values: the tensors, as leaves with a gradient.
        units: the unit (d,) in which an optimizer measures each of them, a power of two; None if
            all units are 1.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.shapes = [t.shape for t in tensors]
        self.sizes = [t.numel() for t in tensors]
        self.flat = torch.cat([t.detach().reshape(-1) for t in tensors])
        self.values = [v.requires_grad_() for v in self.split(self.flat)]
        self.units: Tensor | None = None
        self.flat_grad: Tensor | None = None  # set if the gradients are views of one vector, too

    def grad(self) -> Tensor:
        """Return the gradient as a flat vector."""
        if self.flat_grad is not None:
            return self.flat_grad
        return torch.cat([v.grad.reshape(-1) for v in self.values])  # type: ignore[union-attr]

    def set_grad(self, flat: Tensor) -> None:
        """Set the gradient, a flat vector."""
        self.flat_grad = flat
        for value, part in zip(self.values, self.split(flat), strict=True):
            value.grad = part

    def split(self, flat: Tensor) -> list[Tensor]:
        """Split a flat vector into tensors with the shapes of the parameters."""
        parts = flat.split(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Step(Protocol):
    """An evaluator of a loss at the parameters; it leaves the gradient in their ``grad``.

    Attributes:
        engine: the name of its engine.
        threads: the threads that it can use.
        has_state: whether the user's functions have a state that is no tensor, on which the loss of
            later steps may depend.
    """

    engine: str
    threads: Threads
    has_state: bool

    def begin_block(self, size: int = BLOCK, stream: Stream = None) -> None:
        """Discard noise that was drawn in advance; up to ``size`` calls will follow.

        Args:
            size: the number of calls.
            stream: a key for the noise that is drawn in C, and the number of the next step; None
                makes a key by torch's generator, which draws all other noise.
        """

    def __call__(self, data: Sequence[Tensor]) -> Any:
        """Return the loss at a minibatch, with new random numbers; or a list, as the loss does."""


class EagerStep:
    """The loss itself."""

    engine = "eager"
    threads = Threads.ALL

    def __init__(self, loss: Loss, parameters: Parameters) -> None:
        self._loss = loss
        self._parameters = parameters
        self.has_state = False

    def begin_block(self, size: int = BLOCK, stream: Stream = None) -> None:
        """Do nothing: random numbers are drawn when they are needed."""

    def __call__(self, data: Sequence[Tensor]) -> Any:
        """Return the loss at a minibatch."""
        self._parameters.flat_grad = None
        for value in self._parameters.values:
            value.grad = None
        loss = self._loss(self._parameters.values, data)
        for value in self._parameters.values:
            if value.grad is None:
                value.grad = torch.zeros_like(value)
        return loss.tolist() if isinstance(loss, Tensor) else float(loss)


class GraphStep:
    """The traced graph of the loss and its gradient, run by torch."""

    engine = "graph"
    threads = Threads.ALL
    has_state = False
    writes = False  # whether it writes to the buffers of the loss

    def __init__(
        self, loss: Loss, parameters: Parameters, data: Sequence[Tensor], held: int = 0
    ) -> None:
        count = len(parameters.values)

        def loss_and_grads(*inputs: Tensor, held: Sequence[Tensor] = ()) -> tuple[Any, ...]:
            leaves = [v.detach().requires_grad_() for v in inputs[:count]]
            with torch.enable_grad():
                value = loss(leaves, [*held, *inputs[count:]], traced=True)
            return (
                torch.as_tensor(value).detach(),
                *[torch.zeros_like(x) if x.grad is None else x.grad for x in leaves],
            )

        values = [v.detach() for v in parameters.values]
        self._held = 0
        try:
            recording = record(loss_and_grads, [*values, *data])
        except ControlFlowError:
            if not held:
                raise
            fixed = functools.partial(loss_and_grads, held=data[:held])
            recording = record(fixed, [*values, *data[held:]])
            self._held = held
        for node in recording.graph.nodes:
            for written in written_tensors(node):
                own = written.op == "get_attr" and any(
                    recording.constants[str(written.target)] is buffer for buffer in loss.buffers
                )
                if written.op == "placeholder" or (written.op == "get_attr" and not own):
                    raise ForeignWriteError(
                        "it writes to a tensor that does not belong to the fit, such as the "
                        "running statistics of a network that the model closes over"
                    )
                self.writes = self.writes or own
        targets = {node.target for node in recording.graph.nodes}
        if aten._linalg_check_errors.default in targets:
            given = [*values, *data]
            if catches_failures(lambda *inputs: loss_and_grads(*inputs)[0], given):
                raise CaughtError
        erase_unused(recording.graph)
        self._graph: Any = recording.function()
        self._parameters = parameters

    def begin_block(self, size: int = BLOCK, stream: Stream = None) -> None:
        """Do nothing: the graph draws random numbers when it runs."""

    def __call__(self, data: Sequence[Tensor]) -> Any:
        """Return the loss at a minibatch."""
        values = self._parameters.values
        self._parameters.flat_grad = None
        with torch.no_grad():
            loss, *grads = self._graph(*values, *data[self._held :])
        for value, grad in zip(values, grads, strict=True):
            value.grad = grad
        return loss.tolist()


class FusedStep(GraphStep):
    """The traced graph, with element-wise operations fused by torch's compiler Inductor."""

    engine = "inductor"

    def __init__(
        self, loss: Loss, parameters: Parameters, data: Sequence[Tensor], held: int = 0
    ) -> None:
        super().__init__(loss, parameters, data, held)
        if self.writes:
            raise UntraceableError("it updates running statistics")
        self._graph = torch.compile(self._graph, backend="inductor", dynamic=False, fullgraph=True)
        # Draw random numbers as torch does, so that the step can be verified and reproduced on
        # another engine. Use no pool of processes, since it would outlive the fit.
        options = {"fallback_random": True, "compile_threads": 1}
        with torch._inductor.config.patch(options):
            self(data)


class NativeStep:
    """C code of the loss and its gradient; the noise of many steps is drawn at once."""

    engine = "native"
    threads = Threads.ALL
    has_state = False

    def __init__(
        self, loss: Loss, parameters: Parameters, data: Sequence[Tensor], held: int = 0
    ) -> None:
        def value_and_grad(z: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                given = [*data[: len(data) - len(inputs)], *inputs]
                value = loss(parameters.split(z), given, traced=True)
            assert z.grad is not None
            return z.grad, torch.as_tensor(value).detach()

        if parameters.flat.dtype != torch.float64:
            raise UnsupportedError(f"it trains in {parameters.flat.dtype}, but C code is float64")
        if _writes_buffers(loss, parameters, data):
            raise UnsupportedError("it updates running statistics")
        traced = trace_function(value_and_grad, parameters.flat, data, random=True)
        self._held = 0 if traced.reads_data else held
        if not (traced.reads_data or held):
            raise UntraceableError(
                "its control flow in Python depends on the values of a minibatch"
            )
        if self._held and data[held:]:  # some data differ between steps, such as the KL weight
            traced = trace_function(value_and_grad, parameters.flat, data[held:], random=True)
        if _matrix_multiplications(traced.density) > _MAX_NATIVE_MULTIPLICATIONS:
            raise UnsupportedError(
                "its matrix products are large, so the native engine would be slower than torch"
            )
        source = emit(traced.density, len(parameters.flat))
        if source.calls:  # torch is faster with all of the step
            raise UnsupportedError(
                f"the operation {source.calls[0].op} is not supported by the native engine"
            )
        if source.statements > MAX_STATEMENTS:
            raise UnsupportedError(f"its graph has {source.statements} operations")
        arrays = traced.arrays(data[self._held :])
        assert arrays is not None
        self._traced = traced
        self._data: Sequence[Tensor] | None = data
        self._arrays = [laid_out(real(a)).clone() for a in arrays]
        # Until the step is verified, with all draws of the loss, so that it has the same noise.
        self._draw = _NoiseGenerator(traced.draw_all) if traced.draw_all is not None else None
        self._noise = (
            [laid_out(x[0]).clone() for x in self._draw(1)] if self._draw is not None else []
        )
        self._specs: list[tuple[NoiseSpec, torch.Size]] | None = None
        self._block: list[Tensor] = []
        self._remaining = 0
        self._size = BLOCK
        self._stream: Stream = None
        self._code = NativeDensity(source, len(parameters.flat), self._arrays + self._noise, 1)
        self._parameters = parameters
        self._value = np.zeros(())
        self._grad = torch.zeros_like(parameters.flat)
        self._grads = parameters.split(self._grad)

    def verified(self) -> None:
        """Draw only the random numbers that the loss uses from now on, and in C where possible."""
        if self._traced.draw is not None:
            self._draw = _NoiseGenerator(self._traced.draw)
            self._specs = specify_noise(self._draw.graph)
            try:
                draw_noise(self._specs or [], 0, 1)
            except CompilerError:
                self._specs = None

    def begin_block(self, size: int = BLOCK, stream: Stream = None) -> None:
        """Make the next call draw the noise of ``size`` steps at once."""
        self._size, self._remaining, self._stream = size, 0, stream

    @property
    def code(self) -> NativeDensity:
        """The compiled loss."""
        return self._code

    @property
    def noise(self) -> list[Tensor]:
        """The arrays from which the compiled loss reads its noise."""
        return self._noise

    @property
    def noise_specs(self) -> list[tuple[NoiseSpec, torch.Size]] | None:
        """What each array of noise is, if C can draw it; None if torch draws it."""
        return self._specs if self._draw is not None else []

    def draw(self, count: int) -> list[Tensor]:
        """Draw the noise of ``count`` evaluations: (count, ...) for each array."""
        if self._draw is None:
            return []
        if self._specs is not None:
            key, first = self._stream or (random_key(), 0)
            return draw_noise(self._specs, key, count, first)
        return self._draw(count)

    def __call__(self, data: Sequence[Tensor]) -> float:
        """Return the loss at a minibatch."""
        if data is not self._data:
            arrays = self._traced.arrays(data[self._held :])
            if arrays is None or not self._traced.reads_data:
                raise ModelError(
                    "the graph of the model differs between minibatches, so the compiled step "
                    "cannot be used. Use engine='eager'."
                )
            for array, new in zip(self._arrays, arrays, strict=True):
                array.copy_(new)
            self._data = data
        if self._draw is not None:
            if not self._remaining:
                self._block, self._remaining = self.draw(self._size), self._size
            for noise, block in zip(self._noise, self._block, strict=True):
                noise.copy_(block[self._size - self._remaining])
            self._remaining -= 1
        self._code.evaluate(self._parameters.flat, self._grad, self._value)
        self._parameters.flat_grad = self._grad
        for value, grad in zip(self._parameters.values, self._grads, strict=True):
            value.grad = grad
        return float(self._value)


def _writes_buffers(loss: Loss, parameters: Parameters, data: Sequence[Tensor]) -> bool:
    """Return whether a loss changes the buffers of its networks, such as running statistics."""
    if not loss.buffers:
        return False
    before = [buffer.clone() for buffer in loss.buffers]
    with torch.random.fork_rng(devices=[]):
        EagerStep(loss, parameters)(data)
    return not all(map(torch.equal, before, loss.buffers))


def _matrix_multiplications(graph: fx.Graph) -> int:
    """Return the number of multiplications in matrix products."""
    count = 0
    for node in graph.nodes:
        if node.target in (aten.mm.default, aten.bmm.default, aten.mv.default):
            count += math.prod(node.meta["val"].shape) * node.args[0].meta["val"].shape[-1]
        elif node.target is aten.addmm.default:
            count += math.prod(node.meta["val"].shape) * node.args[1].meta["val"].shape[-1]
    return count


class _NoiseGenerator:
    """Draws the random numbers of a traced loss, for one evaluation or for many at once."""

    def __init__(self, draw: fx.GraphModule) -> None:
        self._draw = draw
        for node in list(draw.graph.nodes):
            _replace_filled_noise(node)
        erase_unused(draw.graph)
        draw.recompile()

    @property
    def graph(self) -> fx.Graph:
        """The operations that draw for one evaluation."""
        return self._draw.graph

    def __call__(self, count: int) -> list[Tensor]:
        """Return the noise of ``count`` evaluations, (count, ...) each, float64."""
        with torch.no_grad():
            if count == 1:
                return [x[None].to(torch.float64) for x in self._draw()]
            try:
                dummy = torch.zeros(count)
                many = torch.vmap(lambda _: self._draw(), randomness="different")(dummy)
            except RuntimeError:
                many = None
            # vmap has no rule for some operations, and with others draws once for all evaluations.
            if many is None or any(torch.equal(x[0], x[1]) for x in many):
                each = [self._draw() for _ in range(count)]
                many = [torch.stack(same) for same in zip(*each, strict=True)]
            return [x.to(torch.float64) for x in many]


def _replace_filled_noise(node: fx.Node) -> None:
    """Replace an operation that fills a tensor with noise by one that vmap draws separately."""
    plain = {
        aten.normal_functional.default: (aten.randn.default, (0.0, 1.0)),
        aten.uniform.default: (aten.rand.default, (0.0, 1.0)),
    }
    if node.target not in plain or "val" not in node.meta:
        return
    make, default = plain[node.target]
    numbers: tuple[Any, ...] = (*node.args[1:], *default[len(node.args) - 1 :])
    low, scale = numbers
    if node.target is aten.uniform.default:
        scale = scale - low
    val, graph = node.meta["val"], node.graph
    with graph.inserting_before(node):
        new = graph.call_function(make, (list(val.shape),), {"dtype": val.dtype})
        if (low, scale) != (0.0, 1.0):
            new = graph.call_function(aten.mul.Tensor, (new, scale))
            new = graph.call_function(aten.add.Tensor, (new, low))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def choose_step(
    loss: Loss,
    parameters: Parameters,
    data: Sequence[Tensor],
    engine: str,
    seed: int,
    steps: int = 0,
    held: int = 0,
    functions: Sequence[Callable[..., Any]] = (),
) -> tuple[Step, list[Finding]]:
    """Return an evaluator of a loss, and a finding if it is slower than necessary.

    Args:
        loss: the loss.
        parameters: the parameters of the loss.
        data: a minibatch; the step can be used for others of the same shapes.
        engine: ``"native"``, ``"inductor"``, ``"graph"``, ``"eager"``, or ``"auto"`` for the first
            that is available; Inductor only for many steps, since it takes long to compile.
        seed: seed of the random numbers at which the compiled step is verified.
        steps: the number of steps to expect.
        held: the number of tensors at the start of ``data`` that are the same in each step. Control
            flow may depend on their values.
        functions: the functions and networks of the user that the loss calls.

    Raises:
        ModelError: the native engine is required but not available.
    """
    eager = EagerStep(loss, parameters)
    before = [*map(surroundings, functions)]
    parallel = _is_parallel(eager, parameters, data, loss.buffers)
    after = map(surroundings, functions)
    changed = [name for a, b in zip(before, after, strict=True) for name in a.changed(b)]
    eager.has_state = bool(changed)
    if engine == "eager":
        eager.threads = _threads(eager, parallel, parameters, data, loss.buffers)
        return eager, []
    compiled: Step
    failures: list[Exception] = []
    if changed:  # on which later steps may branch
        failures.append(StateError(f"each call changes the value of '{changed[0]}'"))
    for kind in () if changed else (NativeStep, FusedStep, GraphStep):
        if engine not in ("auto", kind.engine):
            continue
        if engine == "auto" and kind is FusedStep and not _is_inductor_worthwhile(steps):
            continue
        try:
            with _buffers_restored(loss.buffers):
                compiled = kind(loss, parameters, data, held)
            _verify(compiled, eager, parameters, data, seed, loss.buffers)
        except (ProbdlError, RuntimeError, ImportError, SyntaxError) as error:
            failures.append(error)
        else:
            if isinstance(compiled, NativeStep):
                compiled.verified()
            compiled.threads = _threads(compiled, parallel, parameters, data, loss.buffers)
            return compiled, _speed_findings(compiled, failures)
    why = _reason(failures[-1])
    if engine == "native":
        raise ModelError(
            f"engine='native' is not available for the training steps of this model: {why}. "
            "engine='auto' uses another engine."
        )
    eager.threads = _threads(eager, parallel, parameters, data, loss.buffers)
    return eager, [
        Finding(
            "warning",
            "engine",
            f"The steps run on the eager engine, which is slow: {why}.",
            _REMEDIES.get(type(failures[-1]), ""),
        )
    ]


def _is_inductor_worthwhile(steps: int) -> bool:
    left = time_left()  # Inductor cannot be interrupted
    return steps >= _MIN_INDUCTOR_STEPS and (left is None or left > _INDUCTOR_TIME_S)


def _is_parallel(
    eager: Step, parameters: Parameters, data: Sequence[Tensor], buffers: Sequence[Tensor]
) -> bool:
    """Return whether an operation of a step is large enough for more than one thread."""
    try:
        with torch.random.fork_rng(devices=[]), _buffers_restored(buffers), Workload() as work:
            eager(data)
    except Exception:  # the first step will raise the same error, with an explanation
        return True
    finally:
        for value in parameters.values:
            value.grad = None
    return work.parallel


def _threads(
    step: Step,
    parallel: bool,
    parameters: Parameters,
    data: Sequence[Tensor],
    buffers: Sequence[Tensor],
) -> Threads:
    """Return the threads that a step can use.

    In which order numbers are summed depends on the number of threads, the shapes and the library,
    but not on the values. So where one evaluation is the same on one thread, all are.
    """
    if not parallel:
        return Threads.ONE
    all_threads = torch.get_num_threads()
    try:
        results = []
        for threads in (all_threads, 1):
            torch.set_num_threads(threads)
            with torch.random.fork_rng(devices=[]), _buffers_restored(buffers):
                torch.default_generator.manual_seed(0)
                step.begin_block(1)
                loss = np.atleast_1d(step(data))
                results.append((loss, parameters.grad().clone(), [b.clone() for b in buffers]))
    except Exception:  # the first step will raise the same error, with an explanation
        return Threads.ALL
    finally:
        torch.set_num_threads(all_threads)
        step.begin_block()
        for value in parameters.values:
            value.grad = None
    (loss, grad, written), (loss_of_one, grad_of_one, written_by_one) = results
    same = (
        np.array_equal(loss, loss_of_one)
        and torch.equal(grad, grad_of_one)
        and all(map(torch.equal, written, written_by_one))
    )
    return Threads.ANY if same else Threads.ALL


def _speed_findings(step: Step, failures: Sequence[Exception]) -> list[Finding]:
    """Report if a problem with the compiler or the cache folder makes a step slower.

    A step that the native engine does not support is not reported: this is usual for networks, for
    which the graph is as fast or faster.
    """
    if step.engine == "native":
        return cache.findings()
    return [
        Finding(
            "warning",
            "engine",
            f"The steps run on the {step.engine} engine, which is slower than the native one: "
            f"{_reason(error)}.",
            "probdl.doctor() shows what is available and what is missing.",
        )
        for error in failures
        if isinstance(error, CompilerError)
    ]


def _reason(error: Exception) -> str:
    if isinstance(error, ControlFlowError):
        return f"its control flow in Python depends on values of tensors{where(error)}"
    return str(error).splitlines()[0].rstrip(".")


@contextmanager
def _buffers_restored(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Restore running statistics on exit."""
    before = [b.clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def _verify(
    compiled: Step,
    eager: Step,
    parameters: Parameters,
    data: Sequence[Tensor],
    seed: int,
    buffers: Sequence[Tensor],
) -> None:
    """Compare loss and gradient with those of the eager step, at the same random numbers."""
    start = parameters.flat.clone()
    tolerance = torch.finfo(start.dtype).eps ** 0.5
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.random.fork_rng(devices=[]):
            for scale in (0.0, 0.05):
                jitter = torch.randn(start.shape, generator=generator, dtype=start.dtype)
                parameters.flat.copy_(start + scale * jitter)
                results = []
                for step in (eager, compiled):
                    torch.default_generator.manual_seed(seed)
                    step.begin_block(1)
                    with _buffers_restored(buffers):
                        loss = np.atleast_1d(step(data))
                    results.append((loss, parameters.grad().clone()))
                (loss, grad), (found, found_grad) = results
                if not (np.isfinite(loss).all() and torch.isfinite(grad).all()):
                    continue
                of_loss = (abs(found - loss) / (1 + abs(loss))).max()
                of_grad = float((found_grad - grad).abs().max() / (1 + grad.abs().max()))
                error = float(np.maximum(of_loss, of_grad))  # NaN if one is
                if not error <= tolerance:
                    raise MismatchError(
                        f"the compiled step disagrees with the model (relative error {error:.2g})"
                    )
    finally:
        parameters.flat.copy_(start)
        for value in parameters.values:
            value.grad = None
        compiled.begin_block()
