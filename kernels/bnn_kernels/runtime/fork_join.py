"""Fork and join inside compiled code: how several threads share the rows of one kernel call without the GIL.

A job is a compiled kernel, its arguments and a number of rows. The calling thread writes it into an array that all
threads see, takes rows part by part and, when none are left, closes the job. A worker that sees a new job while
it is open takes rows too; one that comes late finds it closed and waits for the next. The caller waits only for
workers inside the job, so nothing depends on a worker being awake, and a job costs about a microsecond when one is.

Each thread has a range of the rows, which it takes before it helps with those of others: the range is the same in the
next job, so that what a thread reads is mostly what it wrote itself, in its own core's cache.

All shared numbers are read and written with sequential consistency: a worker first counts itself in and then looks
whether the job is open, the caller first closes it and then looks whether anybody is in.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba._dispatcher import compute_fingerprint
from numba.core import cgutils
from numba.extending import intrinsic

from bnn_kernels.compile.jit import inline, jit
from bnn_kernels.runtime.cache_lines import zeros_at_line

# Places in the shared array, a cache line (8 numbers) APART where different threads write them. From NEXT on each
# thread has one, of the first row of its range that nobody has taken.
APART = 8
JOB, OPEN, TASK, CONTEXT, ROWS, GRAIN, THREADS = 0, 1, 2, 3, 4, 5, 6
INSIDE, FAILED, STOP, NEXT = APART, 2 * APART, 3 * APART, 4 * APART
# Looks at the array before a worker goes to sleep: some 500 us, longer than most steps that are not shared.
SPINS = 20_000

_I8P = ir.IntType(8).as_pointer()
_I64 = ir.IntType(64)
_TASK_TYPE = ir.FunctionType(ir.IntType(1), [_I8P, _I64, _I64])


def _slot(context, builder, array_type, array, place):
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [place])


@intrinsic
def _read(typing, array, place):
    """array[place], atomically."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(_slot(context, builder, signature.args[0], *args), "seq_cst", 8)

    return types.int64(array, types.int64), emit


@intrinsic
def _write(typing, array, place, value):
    """array[place] = value, atomically."""

    def emit(context, builder, signature, args):
        builder.store_atomic(args[2], _slot(context, builder, signature.args[0], *args[:2]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), emit


@intrinsic
def _add(typing, array, place, value):
    """array[place] += value, atomically; return what it was."""

    def emit(context, builder, signature, args):
        return builder.atomic_rmw("add", _slot(context, builder, signature.args[0], *args[:2]), args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), emit


@intrinsic
def _replace(typing, array, place, old, new):
    """array[place] = new if it is `old`, atomically; return whether it was."""

    def emit(context, builder, signature, args):
        slot = _slot(context, builder, signature.args[0], *args[:2])
        pair = builder.cmpxchg(slot, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(array, types.int64, types.int64, types.int64), emit


@intrinsic
def _pause(typing):
    """Tell the CPU that this thread spins."""

    def emit(context, builder, signature, args):
        if str(builder.module.triple).startswith(("x86", "amd64")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), emit


def _task(context, builder, arguments):
    """Return (function, type of its context): function(context, first, last) calls the kernel in the context."""
    call_types = (*arguments.types, types.int64, types.int64)
    frame_type = ir.LiteralStructType([_I64, context.get_value_type(arguments)])
    task = ir.Function(builder.module, _TASK_TYPE, builder.module.get_unique_name("bnn_kernels_task"))
    task.linkage = "internal"
    inner = ir.IRBuilder(task.append_basic_block())
    read = inner.load(inner.bitcast(task.args[0], frame_type.as_pointer()))
    read.align = 8
    convention = context.call_conv
    kind = convention.get_function_type(types.none, call_types)
    callee = inner.inttoptr(inner.extract_value(read, 0), kind.as_pointer())
    values = [*cgutils.unpack_tuple(inner, inner.extract_value(read, 1)), *task.args[1:]]
    status, _ = convention.call_function(inner, callee, types.none, call_types, values)
    inner.ret(status.is_error)
    return task, frame_type


@intrinsic
def _make_task(typing, kernel, arguments):
    """(address of a function, address of its context): function(context, first, last) calls the kernel.

    kernel: the address of a compiled function (*arguments, first, last) -> None. The context lives in the caller's
    frame.
    """

    def emit(context, builder, signature, args):
        task, frame_type = _task(context, builder, signature.args[1])
        place = cgutils.alloca_once(builder, frame_type)
        builder.store(args[0], cgutils.gep_inbounds(builder, place, 0, 0))
        builder.store(args[1], cgutils.gep_inbounds(builder, place, 0, 1))
        addresses = [builder.ptrtoint(task, _I64), builder.ptrtoint(place, _I64)]
        return context.make_tuple(builder, signature.return_type, addresses)

    return types.UniTuple(types.int64, 2)(types.int64, arguments), emit


# Words of a frame that lives on: enough for the arguments of any kernel.
FRAME_WORDS = 512


def _borrowed(builder, kind, value):
    """Return a value without its claims on memory: whoever keeps the frame keeps the arrays."""
    if isinstance(kind, types.Array):
        for place in (0, 1):  # reference counter, Python object
            value = builder.insert_value(value, ir.Constant(value.type.elements[place], None), place)
    elif isinstance(kind, types.BaseTuple):
        for place, part in enumerate(kind.types if hasattr(kind, "types") else [kind.dtype] * len(kind)):
            value = builder.insert_value(value, _borrowed(builder, part, builder.extract_value(value, place)), place)
    return value


@intrinsic
def _fill_frame(typing, kernel, place, arguments):
    """Address of a task as `_make_task` makes it; its context goes to the address `place`."""

    def emit(context, builder, signature, args):
        kind = signature.args[2]
        task, frame_type = _task(context, builder, kind)
        if context.get_abi_sizeof(frame_type) > FRAME_WORDS * 8:
            raise AssertionError(f"a kernel's arguments do not fit {FRAME_WORDS} words: {kind}")
        frame = builder.inttoptr(args[1], frame_type.as_pointer())
        builder.store(args[0], cgutils.gep_inbounds(builder, frame, 0, 0)).align = 8
        builder.store(_borrowed(builder, kind, args[2]), cgutils.gep_inbounds(builder, frame, 0, 1)).align = 8
        return builder.ptrtoint(task, _I64)

    return types.int64(types.int64, types.int64, arguments), emit


@intrinsic
def _call_task(typing, task, context_address, first, last):
    """Call a task on rows first..last; True if its kernel failed."""

    def emit(context, builder, signature, args):
        function = builder.inttoptr(args[0], _TASK_TYPE.as_pointer())
        return builder.call(function, [builder.inttoptr(args[1], _I8P), args[2], args[3]])

    return types.boolean(types.int64, types.int64, types.int64, types.int64), emit


@inline
def _begin(rows, grain, threads, thread):
    """Return the row with which a thread's range begins, a multiple of `grain`; the last one ends with all rows."""
    return min((rows + grain - 1) // grain * thread // threads * grain, rows)


@jit
def _take_rows(state, thread):
    """Run the open job's task on parts of its rows until none are left: of the thread's own range, then of others.

    Each part is half of what is left of a range, so that one who comes late or is disturbed does not keep the others
    waiting, and at least `GRAIN` rows.
    """
    task, context = state[TASK], state[CONTEXT]
    rows, grain, threads = state[ROWS], state[GRAIN], state[THREADS]
    for further in range(threads):
        owner = thread + further - (threads if thread + further >= threads else 0)
        place, end = NEXT + APART * owner, _begin(rows, grain, threads, owner + 1)
        while True:
            first = _read(state, place)
            if first >= end:
                break
            last = min(first + max((end - first) // (2 * grain), 1) * grain, end)
            if _replace(state, place, first, last) and _call_task(task, context, first, last):
                _write(state, FAILED, 1)


@jit
def _share(state, task, context, rows, grain, threads):
    """Run a task's rows together with whoever waits in `work`; True if it failed."""
    state[TASK] = task
    state[CONTEXT] = context
    state[ROWS] = rows
    state[GRAIN] = grain
    state[THREADS] = threads
    _write(state, FAILED, 0)
    for thread in range(threads):
        _write(state, NEXT + APART * thread, _begin(rows, grain, threads, thread))
    job = state[JOB] + 1
    _write(state, OPEN, job)
    _write(state, JOB, job)
    _take_rows(state, 0)
    _write(state, OPEN, 0)
    while _read(state, INSIDE) != 0:
        _pause()
    return _read(state, FAILED) != 0


@jit
def launch(state, kernel, rows, grain, threads, arguments):
    """Run kernel(*arguments, first, last) over all rows together with whoever waits in `work`; True if it failed."""
    task, context = _make_task(kernel, arguments)
    return _share(state, task, context, rows, grain, threads)


@jit
def _store_task(kernel, frame, arguments):
    return _fill_frame(kernel, frame.ctypes.data, arguments)


@jit
def play(calls, state, threads, least_work):
    """Run calls int64 (C, 5): task, context, rows, work, grain; shared among threads where each gets `least_work`.

    True if one failed; those after it are not run.
    """
    for i in range(len(calls)):
        task, context, rows, work, grain = calls[i, 0], calls[i, 1], calls[i, 2], calls[i, 3], calls[i, 4]
        if min(min(threads, (rows + grain - 1) // grain), work // least_work) > 1:
            failed = _share(state, task, context, rows, grain, threads)
        else:
            failed = _call_task(task, context, 0, rows)
        if failed:
            return True
    return False


@jit
def work(state, awake, last, thread):
    """Take part in jobs after `last`; return the last one seen when none came for a while (awake[0] is then 0).

    thread: 1, 2, ... of a worker; the caller of a job is thread 0.
    """
    while True:
        spins = 0
        while _read(state, JOB) == last:
            if _read(state, STOP) != 0:
                return last
            spins += 1
            if spins > SPINS:
                _write(awake, 0, 0)
                if _read(state, JOB) == last:
                    return last
                _write(awake, 0, 1)
            _pause()
        last = _read(state, JOB)
        _add(state, INSIDE, 1)
        if _read(state, OPEN) == last:
            _take_rows(state, thread)
        _add(state, INSIDE, -1)


_addresses: dict[tuple[Any, bytes], int] = {}


def address_of(kernel: Any, arguments: tuple[Any, ...]) -> int:
    """Return the address of a kernel's machine code for these arguments, compiled if need be."""
    key = kernel, compute_fingerprint(arguments)
    found = _addresses.get(key)
    if found is None:
        signature = (*map(typeof, arguments), types.int64, types.int64)
        kernel.compile(signature)
        compiled = kernel.overloads[signature]
        found = _addresses[key] = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return found


def store_task(kernel: int, frame: np.ndarray, arguments: tuple[Any, ...]) -> int:
    """Return the address of a task that calls the kernel at an address with these arguments.

    Its context goes into frame, int64 (FRAME_WORDS,). Whoever keeps the address keeps frame and arguments too.
    """
    return int(_store_task(kernel, frame, arguments))


def new_state(threads: int) -> np.ndarray:
    """Return the shared array of so many threads."""
    return zeros_at_line((NEXT + APART * threads,), np.int64)
