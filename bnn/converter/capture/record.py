"""Run a network on a few inputs and record the ATen operations that PyTorch runs, as a graph with names and values.

What PyTorch's dispatcher sees has one spelling: `F.relu`, `nn.ReLU` and `x.relu()` are `aten.relu`, and Python code
that looks at shapes has run. In inference mode operations arrive whole, such as `aten.conv2d` and `aten.batch_norm`.
`torch.export` records the same operations with a symbolic batch, but takes about a second for a network of five layers;
here the network runs with several numbers of inputs instead, and what is not alike in all runs depends on that number.

Modules, autograd functions and functions that have a rule stay whole: what runs inside them is not recorded. Writes in
place are recorded as functions: of the tensor that is written, and of the one of which it is a part. `x.data = y` makes
x another name of y.
"""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bnn.converter.capture.exchange import functions_with_rules
from bnn.converter.capture.on_cpu import OnCpu
from bnn.converter.errors import ConversionError
from bnn.converter.recording import in_thread
from bnn.converter.registry import functions_of_torch, rule_of_function, rule_of_module
from bnn.layers.base import QuantLayer
from bnn.quantizers.base import Quantizer

# The batch that a network is tried with: one that no layer's width is likely to be confused with an unknown.
BATCH = 2

# Operations whose result is a number of Python, not a tensor; the last two run before numpy() and tolist().
_NUMBERS = ("item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "resolve_conj", "resolve_neg")
# Operations that read nothing but the shape of their argument.
_OF_SHAPE = (
    "ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full",
)  # fmt: skip
# Operations whose result holds any numbers, which a network writes over.
_OF_ANYTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
# Operations that give their argument, perhaps in other memory.
_COPIES = ("clone", "contiguous", "detach", "alias", "lift_fresh")
_OWN_FILES = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))

# Of all results of a recorded run, beyond which they are not kept.
MOST_BYTES = 2**30

Region = tuple[Any, ...]
Keep = Callable[[int], bool] | None


@dataclass(eq=False)
class Node:
    """One recorded operation.

    target: an ATen operator, or the module, autograd function or function that stayed whole; None for an input, or for
    a constant that the network writes to. run: does the same on tensors. args, kwargs: hold an Output for each tensor
    that depends on an input. results: as they were made, all tensors of them in order; without numbers, on the meta
    device, where they are not kept. owner: path of the module whose
    forward runs it. module: path (and number of the call) of the module whose result it is, "" if it is none's.
    line: file and line of the network's code.
    """

    index: int
    target: Any
    run: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    base: str
    owner: str
    line: str = ""
    module: str = ""
    name: str = ""

    @property
    def place(self) -> str:
        """The name of the node in reports: a module's dotted path where it is one."""
        return self.name or self.module or (f"{self.owner}.{self.base}" if self.owner else self.base)

    def place_of(self, index: int) -> str:
        """The name of one of its results."""
        return self.place if len(self.results) == 1 else f"{self.place}.{index}"

    @property
    def operands(self) -> list["Output"]:
        return [part for part in leaves((self.args, self.kwargs)) if isinstance(part, Output)]


@dataclass(frozen=True)
class Output:
    """One tensor of a node's results."""

    node: Node
    index: int


@dataclass(frozen=True)
class Captured:
    """A recorded run. result: what the network returned, with an Output for each tensor that depends on an input.

    whole: whether the results of all nodes are kept.
    """

    network: nn.Module
    nodes: list[Node]
    inputs: list[Node]
    result: Any
    returned: Any
    whole: bool


def numbers_of(node: Node, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the results of a node with its arguments, which are tensors; they are made again if they are not kept."""
    if node.run is None or not any(x.is_meta for x in node.results):
        return node.results
    return [x for x in leaves(node.run(*args, **kwargs)) if isinstance(x, Tensor)]


def leaves(value: Any) -> list[Any]:
    """Return what lies in tuples, lists, dicts and slices, in order."""
    if isinstance(value, tuple | list):
        return [part for item in value for part in leaves(item)]
    if isinstance(value, dict):
        return leaves(list(value.values()))
    if isinstance(value, slice):
        return leaves([value.start, value.stop, value.step])
    return [value]


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return tuples, lists, dicts and slices with what lies in them changed."""
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(end, change) for end in (value.start, value.stop, value.step)))
    return change(value)


def part_of(base: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """Return the numbers of a contiguous tensor that a view of it reads."""
    return base.contiguous().clone().as_strided(size, stride, offset)


def written(base: Tensor, part: Tensor, size: Sequence[int], stride: Sequence[int], offset: int) -> Tensor:
    """Return a contiguous tensor with the numbers that a view of it reads exchanged for others."""
    y = base.contiguous().clone()
    y.as_strided(size, stride, offset).copy_(part)
    return y


def _memory(x: Tensor) -> int:
    """Return what tells a tensor's memory, whatever lies where, from that of others."""
    return x.untyped_storage()._cdata


def _region(x: Tensor) -> Region:
    """Return what tells a tensor from others of its memory, and that memory from others."""
    if not x.numel():
        return (id(x),)
    return (_memory(x), x.storage_offset(), tuple(x.shape), x.stride(), x.dtype)


def _without_numbers(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


class _Recorder(TorchDispatchMode):
    """Records the operations of one thread on tensors that depend on the network's inputs."""

    def __init__(self, network: nn.Module, keep: Keep):
        super().__init__()
        self.network, self.keep = network, keep
        self.bytes, self.keeps_all = 0, True  # of all results, and whether they are kept
        self.nodes: list[Node] = []
        # Where the numbers of a region of memory were made. Of memory that is known the name is kept, so no other gets
        # it, but not what lies there: that of a network with many small operations is large.
        self.known: dict[Region, Output] = {}
        self.regions: dict[int, set[Region]] = {}
        self.names: dict[int, StorageWeakRef] = {}
        self.roots: dict[int, tuple[Region, bool]] = {}  # and whether it is contiguous
        self.empty: list[Tensor] = []
        # Constants by their memory: of what a constant that is written to is a part.
        self.made: dict[int, Tensor] = {}
        # Nodes that read constants, by the constants' memory.
        self.readers: dict[int, list[Node]] = {}
        self.within = 0  # calls that stay whole
        self.path: list[str] = []
        self.calls: dict[str, int] = {}
        self.failing = ""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave the compiler out, whose import takes seconds."""
        return False

    # -- what is known ----------------------------------------------------------------------------------------------

    def find(self, x: Tensor) -> Output | None:
        """Return where a tensor's numbers were made, None if they do not depend on an input."""
        found = self.known.get(_region(x))
        if found is not None or not x.numel():
            return found
        if (root := self.roots.get(_memory(x))) is None:
            return None
        # Another view of memory that was written to.
        region, contiguous = root
        if not contiguous or x.dtype != region[-1]:
            self.fail(f"works in place on a part of {self.known[region].node.place}, which is read later")
        given = (self.known[region], x.shape, x.stride(), x.storage_offset() - region[1])
        node = self._node(part_of, part_of, given, {}, [x.clone()], "part_of")
        return self._know(x, Output(node, 0))

    def _alias(self, x: Tensor) -> Tensor:
        """Return a tensor of the same memory, which stays as it is if the network gives `x.data` other memory."""
        self.within += 1
        try:
            return x.detach()
        finally:
            self.within -= 1

    def _know(self, x: Tensor, output: Output) -> Output:
        if not x.numel():
            self.empty.append(self._alias(x))
            self.known[_region(self.empty[-1])] = output
            return output
        region, place = _region(x), _memory(x)
        self.known[region] = output
        if place not in self.names:
            self.names[place] = StorageWeakRef(x.untyped_storage())
        self.regions.setdefault(place, set()).add(region)
        self.roots.setdefault(place, (region, x.is_contiguous()))
        return output

    def depends(self, value: Any) -> bool:
        """Whether a tensor among these depends on an input."""
        return any(isinstance(x, Tensor) and self.find(x) is not None for x in leaves(value))

    def sees(self, value: Any) -> bool:
        """Whether a call with these arguments is to be recorded."""
        return not self.within and self.depends(value)

    def linked(self, value: Any) -> Any:
        """Return arguments with an Output for each tensor that depends on an input."""
        return mapped(value, lambda x: self.find(x) or x if isinstance(x, Tensor) else x)

    # -- recording ----------------------------------------------------------------------------------------------------

    @property
    def owner(self) -> str:
        return self.path[-1] if self.path else ""

    def fail(self, reason: str) -> NoReturn:
        raise ConversionError(f"{self.place}: {reason}; copy it first ({_line()})")

    @property
    def place(self) -> str:
        """What is running, for messages."""
        return ".".join(filter(None, (self.owner, self.failing))) or type(self.network).__name__

    def _node(
        self, target: Any, run: Any, args: Any, kwargs: Any, results: list[Tensor], base: str, module: str = ""
    ) -> Node:
        results = self._results(len(self.nodes), target, results)
        node = Node(len(self.nodes), target, run, args, kwargs, results, base, self.owner, _line(), module)
        self.nodes.append(node)
        for x in leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.numel():
                self.readers.setdefault(_memory(x), []).append(node)
        return node

    def _results(self, index: int, target: Any, results: list[Tensor]) -> list[Tensor]:
        """Return the results of a node as they are kept; inputs, and constants that are written to, always are."""
        if self.keep is None and self.keeps_all:
            self.bytes += sum(
                x.untyped_storage().nbytes() for x in results if x.numel() and _memory(x) not in self.names
            )
            if self.bytes > MOST_BYTES:
                self._drop()
        if target is None or (self.keeps_all if self.keep is None else self.keep(index)):
            return [self._alias(x) for x in results]
        self.within += 1
        try:
            return [_without_numbers(x) for x in results]
        finally:
            self.within -= 1

    def _drop(self) -> None:
        """Keep no results but inputs and constants from now on."""
        self.keeps_all = False
        self.within += 1
        for node in self.nodes:
            if node.target is not None:
                node.results = [_without_numbers(x) for x in node.results]
        self.within -= 1

    def input(self, x: Tensor, name: str) -> Node:
        """Record an input of the network."""
        node = self._node(None, None, (), {}, [x.clone()], name)
        self._know(x, Output(node, 0))
        return node

    def _record(self, target: Any, run: Any, args: Any, kwargs: Any, result: Any, base: str, module: str = "") -> None:
        tensors = [x for x in leaves(result) if isinstance(x, Tensor)]
        if not tensors:
            return
        args, kwargs = self.linked((args, kwargs))
        node = self._node(target, run, args, kwargs, list(tensors), base, module)
        for i, x in enumerate(tensors):
            self._know(x, Output(node, i))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        base = func.overloadpacket.__name__
        if not self.within and base in _OF_ANYTHING:
            return self._constant(func(*args, **kwargs).zero_())
        if self.within or not self.depends((args, kwargs)):
            if func._schema.is_mutable and not self.within and isinstance(args[0], Tensor):
                self._keep_constant(args[0])
            return self._constant(func(*args, **kwargs))
        if base in _NUMBERS:
            raise _DataDependentError(
                f"{self.owner or type(self.network).__name__} cannot be recorded: it asks for a number of Python that "
                f"depends on its input ({_line()}), as control flow that depends on data does. Put the part into a "
                "module of its own and give it a rule with bnn.converter.register_rule"
            )
        if base in _OF_SHAPE:  # a constant
            return self._constant(func(*args, **kwargs))
        if base in _COPIES:
            return self._know_as(func(*args, **kwargs), self.find(args[0]))
        self.failing = base
        if rule_of_function(func) is None and not func._schema.is_mutable:
            with self:  # in the operations that it is composed of, if it is
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func._schema.is_mutable:
            result = self._write(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
            self._record(func, func, args, kwargs, result, base)
        self.failing = ""
        return result

    def _know_as(self, result: Any, output: Output | None) -> Any:
        """Let a copy be what it is a copy of: for contiguous tensors PyTorch makes none, which depends on the batch."""
        if output is not None:
            self._know(result, output)
        return result

    def _constant(self, result: Any) -> Any:
        if not self.within and isinstance(result, Tensor) and result.numel():
            self.made.setdefault(_memory(result), self._alias(result))
        return result

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that works in place as one that does not, and let its other names read the result."""
        name = func.overloadpacket.__name__
        changed = [
            i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
        ]
        packet = getattr(torch.ops.aten, name.rstrip("_"), None)
        overload = getattr(packet, func._overloadname, None)
        if overload is None or changed != [0] or name == name.rstrip("_"):
            self.fail(f"{name} writes in a way that cannot be converted")
        x = args[0]
        given = self.linked((args, kwargs))
        if self.find(x) is None:  # a constant
            root = self.made.get(_memory(x), x)
            self._know(root, Output(self._node(None, None, (), {}, [root.clone()], "constant"), 0))
            given = self.linked((args, kwargs))
        result = overload(*args, **kwargs)
        if result.shape != x.shape or result.dtype != x.dtype:
            result = result.to(x.dtype).expand(x.shape)
        self._keep(x)
        self._keep_constant(x)
        x.copy_(result)
        args, kwargs = given
        node = self._node(overload, overload, args, kwargs, [result], name)
        self._assign(x, Output(node, 0))
        return x

    def _keep(self, x: Tensor) -> None:
        """Let what was recorded be as it was when x's memory is overwritten."""
        place = _memory(x)
        for node in self.nodes:
            for i, y in enumerate(node.results):
                if y.numel() and _memory(y) == place:
                    node.results[i] = y.clone()

    def _keep_constant(self, x: Tensor) -> None:
        """Let the constants that nodes have read be as they were when x's memory is overwritten."""
        if not x.numel():
            return
        place = _memory(x)

        def kept(y: Any) -> Any:
            same = isinstance(y, Tensor) and y.numel() and _memory(y) == place
            return y.clone() if same else y

        self.within += 1
        for node in self.readers.pop(place, ()):
            node.args, node.kwargs = mapped((node.args, node.kwargs), kept)
        self.within -= 1

    def _assign(self, x: Tensor, output: Output) -> None:
        place = _memory(x)
        root, contiguous = self.roots[place]
        before = self.known[root]
        for region in self.regions[place]:
            self.known.pop(region, None)
        if root != _region(x):
            if not contiguous:
                self.known[root] = before
                self.fail(f"works in place on a part of {before.node.place}")
            _, offset, shape, stride, dtype = root
            view = (tuple(x.shape), x.stride(), x.storage_offset() - offset)
            base = torch.empty(0, dtype=dtype).set_(x.untyped_storage(), offset, shape, stride)
            node = self._node(written, written, (before, output, *view), {}, [base.clone()], "written")
            self._know(base, Output(node, 0))
        self._know(x, output)

    # -- what stays whole ---------------------------------------------------------------------------------------------

    def whole(self, target: Any, run: Callable[..., Any], args: Any, kwargs: Any, module: str = "") -> Any:
        """Run a function, and record it as one operation. target: what the rule is for."""
        if self.within or not self.depends((args, kwargs)):
            return run(*args, **kwargs)
        linked = self.linked((args, kwargs))
        self.within += 1
        try:
            given = mapped((args, kwargs), lambda x: x.clone() if isinstance(x, Tensor) else x)
            result = run(*args, **kwargs)
            before = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
            copies = [x for x in leaves(given) if isinstance(x, Tensor)]
            changed = any(not _same_numbers(x, y) for x, y in zip(before, copies, strict=True))
        finally:
            self.within -= 1
        base = getattr(target, "__name__", str(target)) if not isinstance(target, nn.Module) else ""
        if changed:
            self.fail("has a rule and works in place")
        # A result that is an argument would be taken for it.
        result = mapped(result, lambda y: y.clone() if isinstance(y, Tensor) and self.known.get(_region(y)) else y)
        tensors = [x for x in leaves(result) if isinstance(x, Tensor)]
        args, kwargs = linked
        node = self._node(target, run, args, kwargs, list(tensors), base, module)
        for i, x in enumerate(tensors):
            self._know(x, Output(node, i))
        return result

    def call_of(self, path: str) -> str:
        """Return a module's path, with the number of the call from the second on."""
        self.calls[path] = self.calls.get(path, 0) + 1
        return path if self.calls[path] == 1 else f"{path}#{self.calls[path]}"

    def finish(self) -> None:
        """Give every node a name of its own."""
        count: dict[str, int] = {}
        for node in self.nodes:
            if node.module or node.target is None:
                node.name = node.place
                continue
            base = node.base.rstrip("_")
            number = count.get(base, 0)
            count[base] = number + 1
            base += f"_{number}" if number else ""
            node.name = f"{node.owner}.{base}" if node.owner else base


class RunError(ConversionError):
    """The network does not run."""

    def __init__(self, message: str, place: str, reason: str):
        super().__init__(message)
        self.place, self.reason = place, reason


class _DataDependentError(ConversionError):
    """Python code asks for a number that depends on the input."""


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b) or bool(a.isnan().any())


def _line() -> str:
    """Return file and line of the code of the network that runs."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_FILES):
        if frame.f_code is capture.__code__:
            return ""  # called by no code of the network's own
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None else f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


class _Functions(TorchFunctionMode):
    """Keeps those functions of PyTorch whole for which a user has given a rule."""

    def __init__(self, recorder: _Recorder, targets: Collection[Any]):
        super().__init__()
        self.recorder, self.targets = recorder, targets

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        target = func if func in self.targets else name if name in self.targets else None
        if target is None:
            return func(*args, **(kwargs or {}))
        return self.recorder.whole(target, func, args, kwargs or {})


def _is_whole(module: nn.Module) -> bool:
    return isinstance(module, QuantLayer | Quantizer) or rule_of_module(module) is not None


def _is_of_torch(module: nn.Module) -> bool:
    """Whether a module is a layer of torch.nn, whose result has its name."""
    of_torch = type(module).__module__.startswith("torch.nn.")
    return of_torch and all(name == "parametrizations" for name, _ in module.named_children())


@contextmanager
def _watched(network: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Let modules tell the recorder when they run; those with a rule stay whole."""
    handles: list[Any] = []
    exchanged: list[tuple[nn.Module, Any]] = []

    def keep_whole(module: nn.Module, path: str) -> None:
        forward = module.forward
        exchanged.append((module, vars(module).get("forward")))

        def whole(*args: Any, **kwargs: Any) -> Any:
            if recorder.within or not recorder.depends((args, kwargs)):
                return forward(*args, **kwargs)
            return recorder.whole(module, forward, args, kwargs, recorder.call_of(path or "model"))

        vars(module)["forward"] = whole

    def follow(module: nn.Module, path: str) -> None:
        starts: list[int] = []

        def enter(module: nn.Module, args: Any) -> None:
            starts.append(len(recorder.nodes))
            recorder.path.append(path)

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            recorder.path.pop()
            start = starts.pop()
            first = next((x for x in leaves(result) if isinstance(x, Tensor)), None)
            if _is_of_torch(module) and first is not None and not recorder.within:
                found = recorder.find(first)
                if found is not None and found.node.index >= start and not found.node.module:
                    found.node.module = recorder.call_of(path or "model")

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))

    try:
        for path, module in network.named_modules():
            if _is_whole(module):
                keep_whole(module, path)
            follow(module, path)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, before in exchanged:
            del vars(module)["forward"]
            if before is not None:
                vars(module)["forward"] = before


def _names_of_inputs(network: nn.Module, count: int) -> list[str]:
    """Return the names of the first inputs; ConversionError unless the network takes that many."""
    try:
        parameters = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):
        return [f"x{i}" for i in range(count)]
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return [f"x{i}" for i in range(count)]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in positional if p.default is p.empty]
    if not len(needed) <= count <= len(positional):
        wanted = ", ".join(map(repr, needed))
        raise ConversionError(
            f"the network takes {len(needed)} inputs ({wanted}), got {count} examples: give a tuple of them"
        )
    return [p.name for p in positional[:count]]


@contextmanager
def unfused() -> Iterator[None]:
    """Within it, PyTorch's layers of transformers run operation by operation, not by kernels of their own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def capture(network: nn.Module, inputs: Sequence[Tensor], keep: Keep = None) -> Captured:
    """Run a network on inputs and return what it did; ConversionError, with the place, if it does not run.

    network: one's own copy, in evaluation mode, float32 on a CPU. For the time of the run its modules have hooks.
    keep: of which nodes, by their index, the results are kept; None is of all, or of none if these are many bytes.
    """
    names = _names_of_inputs(network, len(inputs))
    recorder = _Recorder(network, keep)
    targets = functions_of_torch()
    with ExitStack() as stack:
        stack.enter_context(functions_with_rules(network, recorder.sees))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(unfused())
        stack.enter_context(_watched(network, recorder))
        stack.enter_context(in_thread(recorder))
        stack.enter_context(OnCpu())
        given = [x.detach().clone() for x in inputs]
        nodes = [recorder.input(x, name) for x, name in zip(given, names, strict=True)]
        if targets:
            stack.enter_context(_Functions(recorder, targets))
        stack.enter_context(recorder)
        try:
            returned = network(*given)
        except ConversionError:
            raise
        except Exception as error:  # of the network's own code, which may be any
            shapes = ", ".join(f"({', '.join(map(str, ('N', *x.shape[1:])))})" for x in inputs)
            message = f"the model does not run on an input of shape {shapes}, at {recorder.place}: {error}"
            raise RunError(message, recorder.place, str(error)) from error
        result = recorder.linked(returned)
    recorder.finish()
    return Captured(network, recorder.nodes, nodes, result, returned, keep is None and recorder.keeps_all)


def random_inputs(examples: Sequence[Tensor], count: int = BATCH, seed: int = 0) -> list[Tensor]:
    """Return random floats, in every second image larger ones, and none that is 0: who gives a rule may know of none.

    Integers are the example's own, of which it is known that there is a row for each. Pixels are 1 .. 255.
    """
    generator = torch.Generator().manual_seed(seed)

    def floats(shape: Sequence[int]) -> Tensor:
        x = torch.randn(count, *shape, generator=generator, dtype=torch.float32)
        x[1::2] *= 3
        return x

    def pixels(shape: Sequence[int]) -> Tensor:
        return torch.randint(1, 256, (count, *shape), generator=generator, dtype=torch.uint8)

    return [
        floats(x.shape[1:])
        if x.is_floating_point()
        else pixels(x.shape[1:])
        if x.dtype == torch.uint8
        else torch.stack([(x[0], x[0].flip(-1))[(i + seed) % 2] for i in range(count)])
        for x in examples
    ]
