"""lorentz.layer, planes and residual on a CPU as compiled loops: the same values and gradients, with less saved.

`usable` says whether the functions here may stand for lorentz's. The loops, convolutions among them, are in _native.c,
compiled at first use by the system's C compiler into a cache folder. Environment: CC, the compiler; HYPIMG_CACHE, the
folder; HYPIMG_NATIVE=0 switches all of this off. Without a compiler everything takes the plain form.

Saved for the backward are the input, the products P of the convolution, the output of a ReLU (which is the next layer's
input) and s², one number per pixel; what else it needs the backward computes again. All that is added up over a batch
is added per image, or per heap of images of a fixed number, and in a fixed order: no result depends on the threads.
[K] vectors are worked on here in float64. Source of the formulas and of what needs care: lorentz.py.

Beside that every Python thread that calls holds scratch memory of either dtype until it ends: what its largest layer so
far needed, 5 K + 9 numbers per pixel of that layer's result with a backward, K + 8 without. Pixels count in whole
blocks, so for images of a few pixels it is more.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from hypimg.geometry._scalars import ALMOST_ONE
from hypimg.nn import lorentz

LOG = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("_native.c")
# No -ffast-math: it would swallow NaN and flush small numbers to 0 in the whole process.
FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
LINK = ["-shared", "-fPIC"]
COMPILE_SECONDS = 120

BLOCK = 1024  # pixels whose vectors are worked on together, at most (LARGEST_BLOCK of _native.c)
BLOCK_NUMBERS = 1 << 14  # in their vectors, so that a block's tensors stay in the cache
LANES = 16  # numbers in the widest register: blocks are multiples of it
PIXEL_ROWS = 8  # PIXEL of _native.c
ROWS = 256  # vectors that a Möbius sum works on together (ROWS of _native.c)
WORTH_A_THREAD = 1 << 15  # numbers
TOGETHER = 2048  # pixels that go through a layer's steps together and whose gradients in a weight are summed


# ---- the compiled loops


def _cache() -> Path:
    return Path(os.environ.get("HYPIMG_CACHE") or Path.home() / ".cache" / "hypimg" / "native")


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    for command in (named, ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    return None


def _machine() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _opened(library: Path) -> ctypes.CDLL:
    """OSError for what is no library of ours."""
    opened = ctypes.CDLL(str(library))
    if not hasattr(opened, "forward_layer"):
        raise OSError(f"{library} has no forward_layer")
    return opened


def _built(command: list[str], dtype: torch.dtype) -> ctypes.CDLL:
    """The library of `dtype`, compiled unless the cache has it whole."""
    flags = FLAGS + (["-DSINGLE"] if dtype == torch.float32 else [])
    version = subprocess.run([*command, "--version"], capture_output=True, timeout=COMPILE_SECONDS).stdout
    parts = [SOURCE.read_bytes(), version, " ".join(command + flags).encode(), _machine().encode()]
    cache, key = _cache(), _hash(b"\0".join(parts))
    cache.mkdir(parents=True, exist_ok=True)
    for library in cache.glob(f"{key}-*.so"):
        # the name has the hash of the content: to open a file that was cut short can end the process
        if library.stem == f"{key}-{_hash(library.read_bytes())}":
            with contextlib.suppress(OSError):
                return _opened(library)
        library.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=cache)
    os.close(handle)
    unfinished = Path(name)
    try:
        for native in (["-march=native"], []):  # not every compiler knows it
            call = [*command, *native, *flags, *LINK, str(SOURCE), "-o", name, "-lm"]
            done = subprocess.run(call, capture_output=True, timeout=COMPILE_SECONDS)
            if not done.returncode:
                break
        else:
            raise OSError(f"{shlex.join(call)}: {done.stderr.decode(errors='replace')[:500]}")
        opened = _opened(unfinished)  # nothing that does not open enters the cache
        os.replace(unfinished, cache / f"{key}-{_hash(unfinished.read_bytes())}.so")  # whole, whoever else compiles
        return opened
    finally:
        unfinished.unlink(missing_ok=True)


@functools.cache
def _library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """None where there is no compiler or it fails."""
    try:
        command = _compiler()
        if command is None:
            LOG.info("no C compiler: Poincaré layers on the CPU take their plain form")
            return None
        return _built(command, dtype)
    # RuntimeError: no home; ValueError: a CC that no shell could read
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        LOG.warning("the native layers were not compiled, the plain form is taken: %s", error)
        return None


def _loaded(dtype: torch.dtype) -> ctypes.CDLL:
    library = _library(dtype)
    if library is None:
        raise RuntimeError("no compiled layers: ask `usable` first")
    return library


def usable(u: Tensor) -> bool:
    """Whether `layer` may be called on u: a plain tensor on a CPU, no transform but autograd's backward, a compiler."""
    return (
        not torch.compiler.is_compiling()
        and u.device.type == "cpu"
        and u.dtype in (torch.float32, torch.float64)
        and type(u) in (Tensor, torch.nn.Parameter)
        and u.numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and os.environ.get("HYPIMG_NATIVE") != "0"
        and _library(u.dtype) is not None
    )


def _members(kind: Any, names: str) -> list[Any]:
    return [(name, kind) for name in names.split()]


class _Job(ctypes.Structure):
    """Job of _native.c."""

    _fields_ = [
        *_members(ctypes.c_int64, "channels pixels block blocks inverted relu normed frechet"),
        *_members(ctypes.c_double, "limit m b f gain g_distance2 g_time old_m pull_mean"),
        *_members(ctypes.c_void_p, "products field shift steepness skip tangents grad"),
        *_members(ctypes.c_void_p, "mean bias g_mean old_mean pull out g_products g_field g_skip"),
        *_members(ctypes.c_void_p, "points by_a by_steepness grads pixel sums"),
    ]


class _Window(ctypes.Structure):
    """Window of _native.c."""

    _fields_ = [
        *_members(ctypes.c_int64, "channels height width filters out_height out_width"),
        *_members(ctypes.c_int64 * 2, "kernel stride padding"),
        *_members(ctypes.c_int64, "images together"),
        *_members(ctypes.c_double, "scale"),
        *_members(ctypes.c_void_p, "u weight g_products g_field products field g_u g_weight"),
    ]


class _PlanesJob(ctypes.Structure):
    """PlanesJob of _native.c."""

    _fields_ = [
        *_members(ctypes.c_int64, "count size"),
        *_members(ctypes.c_double, "root"),
        *_members(ctypes.c_void_p, "z r weight shift steepness g_weight g_shift g_steepness g_z g_r g_c"),
    ]


class _SumJob(ctypes.Structure):
    """SumJob of _native.c."""

    _fields_ = [
        *_members(ctypes.c_int64, "rows size"),
        *_members(ctypes.c_double, "limit"),
        *_members(ctypes.c_void_p, "branch skip grad out g_branch g_skip"),
    ]


class _Scratch(threading.local):
    """Memory that a pass may fill and the next call overwrites: pages of new memory cost more than the loops."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, count: int, dtype: torch.dtype) -> int:
        """The address of room for `count` numbers, at a multiple of 64."""
        have = self.held.get((name, dtype))
        if have is None or have.numel() < count + 64:
            have = self.held[name, dtype] = torch.empty(count + 64, dtype=dtype)
        return (have.data_ptr() + 63) // 64 * 64


_SCRATCH = _Scratch()


@functools.lru_cache(1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def _each(function: Callable, jobs: list, count: int, work: int) -> None:
    """function(*jobs, first, last) over all of `count`, in as many threads as torch uses."""
    threads = min(torch.get_num_threads(), count, max(work // WORTH_A_THREAD, 1))
    pointers = [ctypes.byref(job) for job in jobs]
    if threads == 1:
        failed = [function(*pointers, ctypes.c_int64(0), ctypes.c_int64(count))]
    else:
        ends = [ctypes.c_int64(count * k // threads) for k in range(threads + 1)]
        pool = _pool(torch.get_num_threads(), os.getpid())
        futures = [pool.submit(function, *pointers, *ends[k : k + 2]) for k in range(threads)]
        failed = [future.result() for future in futures]
    if any(failed):
        raise MemoryError("no memory for a block of pixels")


# ---- numbers and [K] vectors, on the host in float64


def _excess(vector: np.ndarray) -> float:
    square = float(vector @ vector)
    return square / (1 + math.sqrt(1 + square))


def _sinhc(t: float) -> tuple[float, float]:
    """sinh(√t)/√t and its derivative."""
    if t < 1e-3:
        value = 1 + t * (1 / 6 + t * (1 / 120 + t * (1 / 5040 + t / 362880)))
        return value, 1 / 6 + t * (1 / 60 + t * (1 / 1680 + t * (1 / 90720 + t / 7983360)))
    root = math.sqrt(t)
    value = math.sinh(root) / root
    return value, (math.cosh(root) - value) / (2 * t)


def _lift(square: float, limit: float) -> tuple[float, float]:
    """exp₀ of a tangent of this ‖·‖²: its factor, and the derivative of that."""
    value, by = _sinhc(4 * min(square, limit * limit))
    if square > limit * limit:
        factor = 2 * value * limit / math.sqrt(square)
        return factor, -0.5 * factor / square
    return 2 * value, 8 * by


def _boost(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """z ⊕ y."""
    return y + z * (math.sqrt(1 + y @ y) + (z @ y) / (1 + math.sqrt(1 + z @ z)))


class _Mean(NamedTuple):
    """A batch's mean and what its gradient needs."""

    mean: np.ndarray  # [K], as the loops see it
    vector: np.ndarray  # ΣW/n
    time: float  # Σx/n
    old: np.ndarray | None = None  # Fréchet: the mean before the last Newton step
    hessian: np.ndarray | None = None
    step: np.ndarray | None = None


def _midpoint(vector: np.ndarray, time: float) -> tuple[np.ndarray, float]:
    """The mean, and the length that its sum was divided by."""
    length = math.sqrt(max(1 + time * (2 + time) - vector @ vector, 1e-30)) if math.isfinite(time) else math.nan
    return vector / length, length


def _midpoint_backward(known: _Mean, grad: np.ndarray) -> tuple[np.ndarray, float]:
    """The gradients in `vector` and `time`."""
    _, length = _midpoint(known.vector, known.time)
    g_length = -float(grad @ known.vector) / length**2
    if length * length <= 1e-30:
        g_length = 0.0
    return grad / length - known.vector * (g_length / length), g_length * (1 + known.time) / length


def _newton_backward(known: _Mean, grad: np.ndarray) -> np.ndarray:
    """H⁻¹ of the gradient in the last Newton step."""
    old, step, hessian = known.old, known.step, known.hessian
    assert old is not None and step is not None and hessian is not None
    length = float(step @ step)
    factor, by = _sinhc(min(length, ALMOST_ONE))
    away = factor * step
    g_time = float(grad @ old)
    g_away = grad + g_time * (away / math.sqrt(1 + away @ away) + old / (1 + math.sqrt(1 + old @ old)))
    g_step = factor * g_away
    if length < ALMOST_ONE:
        g_step = g_step + 2 * by * float(g_away @ step) * step
    return np.linalg.solve(hessian, g_step)


# ---- hyperplanes


class _Kind(NamedTuple):
    """What a gradient has to be like."""

    shape: torch.Size
    dtype: torch.dtype


def _kind(value: Tensor | float) -> _Kind:
    """Of a float, which has no gradient, anything."""
    return _Kind(value.shape, value.dtype) if isinstance(value, Tensor) else _Kind(torch.Size(), torch.float64)


def _number(value: float, kind: _Kind) -> Tensor:
    return torch.full(kind.shape, value, dtype=kind.dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Planes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, r, c):
        z, r = z.contiguous(), None if r is None else r.to(z.dtype).contiguous()
        weight, shift, steepness = torch.empty_like(z), z.new_empty(len(z)), z.new_empty(len(z))
        ctx.root = math.sqrt(c)
        job = _PlanesJob(
            count=len(z), size=z[0].numel(), root=ctx.root, z=z.data_ptr(), r=_address(r), weight=weight.data_ptr(),
            shift=shift.data_ptr(), steepness=steepness.data_ptr(),
        )  # fmt: skip
        _loaded(z.dtype).planes(ctypes.byref(job))
        ctx.save_for_backward(z, r)
        ctx.kind = _kind(c)
        return weight, shift, steepness

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        z, r = ctx.saved_tensors
        g_weight, g_shift, g_steepness = (grad.contiguous() for grad in grads)
        g_z, g_r = torch.empty_like(z), None if r is None else torch.empty_like(r)
        g_c = ctypes.c_double()
        job = _PlanesJob(
            count=len(z), size=z[0].numel(), root=ctx.root, z=z.data_ptr(), r=_address(r),
            g_weight=g_weight.data_ptr(), g_shift=g_shift.data_ptr(), g_steepness=g_steepness.data_ptr(),
            g_z=g_z.data_ptr(), g_r=_address(g_r), g_c=ctypes.addressof(g_c),
        )  # fmt: skip
        _loaded(z.dtype).planes_backward(ctypes.byref(job))
        return g_z, g_r, _number(g_c.value, ctx.kind) if ctx.needs_input_grad[2] else None


def planes(z: Tensor, r: Tensor | None, c: Tensor | float) -> lorentz.Planes:
    """lorentz.planes, of tensors that are `usable`; differentiable once."""
    return lorentz.Planes(*_Planes.apply(z, r, c))


# ---- the layer


class _Shape(NamedTuple):
    """What a layer is but for its tensors."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    limit: float
    inverted: bool
    relu: bool
    normed: bool
    eps: float
    frechet: bool


class _Placed(NamedTuple):
    """What a norm's forward leaves for its backward, on the host in float64."""

    known: _Mean
    beta: np.ndarray  # √c β [K]
    spread: float  # the variance
    c: float


@functools.cache
def _ratio(fan_in: int, channels: int) -> float:
    return lorentz.beta_ratio(fan_in, channels)


class _Run:
    """The jobs of one layer on one batch, for its forward and its backward, and the memory that they point to."""

    def __init__(self, u: Tensor, kernels: torch.Size, shape: _Shape) -> None:
        filters, channels, *kernel = kernels
        images, _, *size = u.shape
        self.out = [
            (long + 2 * pad - tap) // step + 1
            for long, pad, tap, step in zip(size, shape.padding, kernel, shape.stride, strict=True)
        ]
        if u.shape[1] != channels or min(self.out) < 1:
            raise ValueError(f"no convolution of {tuple(u.shape)} with {tuple(kernels)}")
        self.library, self.shape, self.dtype = _loaded(u.dtype), shape, u.dtype
        self.real = np.float32 if u.dtype == torch.float32 else np.float64
        self.images, self.channels, self.pixels = images, filters, math.prod(self.out)
        self.ratio = _ratio(channels * math.prod(kernel), channels)
        self.vectors: dict[str, np.ndarray] = {}  # what the job points to; tensors stay with their owners
        block = min(BLOCK, max(BLOCK_NUMBERS // filters, 4 * LANES), self.pixels)
        block = -(-block // LANES) * LANES
        blocks = -(-self.pixels // block)
        self.room = images * blocks * block
        together = max(1, TOGETHER // self.pixels)
        self.heaps = -(-images // together)
        self.job = _Job(
            channels=filters, pixels=self.pixels, block=block, blocks=blocks, limit=shape.limit,
            inverted=shape.inverted, relu=shape.relu, normed=shape.normed, frechet=shape.frechet,
        )  # fmt: skip
        self.window = _Window(
            channels=channels, height=size[0], width=size[1], filters=filters, out_height=self.out[0],
            out_width=self.out[1], kernel=tuple(kernel), stride=shape.stride, padding=shape.padding, images=images,
            together=together, scale=self.ratio**2,
        )  # fmt: skip

    def scratch(self, **rows: int) -> None:
        for name, count in rows.items():
            setattr(self.job, name, _SCRATCH.take(name, self.room * count, self.dtype))

    def point(self, job: ctypes.Structure, **tensors: Tensor | None) -> None:
        """A job's pointers to contiguous tensors, which the caller keeps alive."""
        for name, tensor in tensors.items():
            setattr(job, name, None if tensor is None else tensor.data_ptr())

    def vector(self, name: str, vector: np.ndarray) -> np.ndarray:
        """[K] for the loops; as they see it, in float64."""
        rounded = self.vectors[name] = np.ascontiguousarray(vector, self.real)
        setattr(self.job, name, rounded.ctypes.data)
        return rounded.astype(np.float64)

    def each(self, name: str, sums: int = 0, with_window: bool = False) -> np.ndarray:
        """A pass over all images; what it added up, [sums]."""
        store = np.empty((self.images, sums))
        self.job.sums = store.ctypes.data
        jobs, count = ([self.job, self.window], self.heaps) if with_window else ([self.job], self.images)
        _each(getattr(self.library, name), jobs, count, self.images * self.pixels * self.channels)
        return store.sum(0)

    def frechet_mean(self, start: _Mean, count: int) -> _Mean:
        """Newton steps from a midpoint (lorentz.frechet_mean)."""
        channels, known = self.channels, start
        for _ in range(lorentz.NEWTON_STEPS + 1):
            old = self.vector("mean", known.mean)
            self.job.m = _excess(old)
            sums = self.each("newton", channels + 1 + channels * channels) / count
            hessian = sums[channels + 1 :].reshape(channels, channels) + sums[channels] * np.eye(channels)
            step = np.linalg.solve(hessian, sums[:channels])
            mean = _boost(old, _sinhc(min(float(step @ step), ALMOST_ONE))[0] * step)
            known = start._replace(mean=mean, old=old, hessian=hessian, step=step)
        return known


def _check(run: _Run, **vectors: Tensor | None) -> None:
    """The loops read and write memory as these shapes say."""
    skip = vectors.pop("skip")
    if skip is not None and skip.shape != (run.images, run.channels, *run.out):
        raise ValueError(f"skip is {tuple(skip.shape)}, not {(run.images, run.channels, *run.out)}")
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (run.channels,):
            raise ValueError(f"{name} is {tuple(vector.shape)}, not {(run.channels,)}")


def _like(u: Tensor, tensor: Tensor) -> Tensor:
    """In the dtype of u and contiguous."""
    if tensor.dtype == u.dtype and tensor.is_contiguous():
        return tensor
    return tensor.to(u.dtype).contiguous()


class _Tensors(NamedTuple):
    """What a layer's jobs point to, contiguous and of one dtype."""

    u: Tensor
    weight: Tensor  # times β's ratio
    shift: Tensor
    steepness: Tensor
    skip: Tensor | None
    products: Tensor
    field: Tensor
    tangents: Tensor


def _start(
    u: Tensor, p: lorentz.Planes, bias: Tensor | None, skip: Tensor | None, shape: _Shape
) -> tuple[_Run, _Tensors]:
    """The jobs of a forward and its tensors, which the caller keeps alive; the results among them are to be filled."""
    run = _Run(u, p.weight.shape, shape)
    _check(run, shift=p.shift, steepness=p.steepness, bias=bias, skip=skip)
    u = u.contiguous()
    held = _Tensors(
        u,
        _like(u, run.ratio * p.weight),
        _like(u, p.shift),
        _like(u, p.steepness),
        None if skip is None else _like(u, skip),
        u.new_empty(run.images, run.channels, *run.out),
        u.new_empty(run.images, 1, *run.out),
        u.new_empty(run.images, run.channels, *run.out),
    )
    run.point(run.window, u=u, weight=held.weight, products=held.products, field=held.field)
    run.point(
        run.job, products=held.products, field=held.field, shift=held.shift, steepness=held.steepness, skip=held.skip,
        out=held.tangents,
    )  # fmt: skip
    run.scratch(points=run.channels, pixel=PIXEL_ROWS)
    return run, held


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, weight, shift, steepness, gain, bias, c, skip, shape: _Shape):
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, shift, steepness, skip)]
        run, held = _start(u, lorentz.Planes(weight, shift, steepness), bias, skip, shape)
        mean = variance = newton = None
        if shape.normed:
            placed = _norm_forward(run, gain, bias, c)
            ctx.placed = placed
            ctx.kinds = [_kind(t) for t in (gain, bias, c)]
            known = placed.known
            mean = torch.from_numpy(known.mean).to(u.dtype).view(1, -1, 1, 1)
            variance = u.new_tensor(placed.spread)
            newton = u.new_tensor(0.0 if known.step is None else math.sqrt(known.step @ known.step))
            ctx.mark_non_differentiable(mean, variance, newton)
        else:
            run.each("forward_layer", 0, with_window=True)
        ctx.run = run
        ctx.save_for_backward(*held[:-1], held.tangents if shape.relu else None)
        ctx.set_materialize_grads(False)
        return held.tangents, mean, variance, newton

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 9
        u, scaled, shift, steepness, skip, products, field, tangents = ctx.saved_tensors
        run, needs = ctx.run, ctx.needs_input_grad
        channels = run.channels
        grad = _like(u, grad)
        g_skip = None if skip is None else torch.empty_like(products)
        g_u = torch.empty_like(u) if needs[0] else None
        g_parts = u.new_empty(run.heaps, *scaled.shape) if needs[1] else None
        run.scratch(points=channels, pixel=PIXEL_ROWS, by_a=channels, by_steepness=channels, grads=channels)
        run.scratch(g_products=channels, g_field=1)
        run.point(
            run.job, products=products, field=field, shift=shift, steepness=steepness, skip=skip, grad=grad,
            tangents=tangents, g_skip=g_skip,
        )  # fmt: skip
        run.point(run.window, u=u, weight=scaled, g_u=g_u, g_weight=g_parts)
        run.window.g_products, run.window.g_field = run.job.g_products, run.job.g_field
        of_norm = _norm_backward(ctx) if run.shape.normed else (None, None, None)
        sums = torch.from_numpy(run.each("backward_layer", 2 * channels, with_window=True))
        weight, *others = ctx.dtypes
        g_weight = None if g_parts is None else (run.ratio * g_parts.sum(0, dtype=torch.float64)).to(weight)
        g_shift, g_steepness = sums[:channels].to(others[0]), sums[channels:].to(others[1])
        if g_skip is not None:
            g_skip = g_skip.to(others[2])
        return g_u, g_weight, g_shift, g_steepness, *of_norm, g_skip, None


def _place(run: _Run, mean: np.ndarray, bias: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The mean and exp₀(√c β) into the job; the mean as the loops see it, √c β."""
    beta = bias.detach().reshape(-1).numpy().astype(np.float64)
    seen = run.vector("mean", mean)
    point = run.vector("bias", _lift(float(beta @ beta), run.shape.limit)[0] * beta)
    m, b = _excess(seen), _excess(point)
    run.job.m, run.job.b, run.job.f = m, b, max(m + b + m * b - float(seen @ point), 0.0)
    return seen, beta


def _norm_forward(run: _Run, gain: Tensor, bias: Tensor, c: Tensor | float) -> _Placed:
    """From the convolution to the tangents of a layer with a norm; the job keeps mean, bias and gain."""
    job, count = run.job, run.images * run.pixels
    sums = run.each("forward_layer", run.channels + 1, with_window=True) / count
    vector, time = sums[:-1], float(sums[-1])
    known = _Mean(_midpoint(vector, time)[0], vector, time)
    if run.shape.frechet:
        known = run.frechet_mean(known, count)
    seen, beta = _place(run, known.mean, bias)
    c = float(c)
    spread = float(run.each("forward_spread", 1)[0]) / count / c
    job.gain = float(gain) / (spread + run.shape.eps)
    run.each("forward_moved")
    return _Placed(known._replace(mean=seen), beta, spread, c)


def _norm_backward(ctx) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loops up to the gradient in mean and variance, which the job then holds; the gradients in γ, β and c."""
    run, (known, beta, spread, c), (gain, bias, curvature) = ctx.run, ctx.placed, ctx.kinds
    job, channels, count, eps = run.job, run.channels, run.images * run.pixels, run.shape.eps
    seen, point = known.mean, run.vectors["bias"].astype(np.float64)
    sums = run.each("backward_moved", 3 * channels + 5)
    g_mean, pulled, g_point = sums[: 3 * channels].reshape(3, channels)
    g_ratio, g_f, g_m, pulled_m, g_b = sums[3 * channels :].tolist()

    g_spread = -g_ratio * job.gain / (spread + eps)
    job.g_distance2 = to_distance2 = g_spread / (count * c)
    g_m += 2 * to_distance2 * pulled_m
    if job.m + job.b + job.m * job.b - seen @ point < 0:
        g_f = 0.0
    g_m += g_f * (1 + job.b)
    g_b += g_f * (1 + job.m)
    g_mean = g_mean + 2 * to_distance2 * pulled + seen * (g_m / (1 + job.m)) - g_f * point
    g_point = g_point + point * (g_b / (1 + job.b)) - g_f * seen
    factor, by = _lift(float(beta @ beta), run.shape.limit)
    g_beta = factor * g_point + 2 * by * float(g_point @ beta) * beta

    if run.shape.frechet:
        pull = run.vector("pull", _newton_backward(known, g_mean) / count)
        old = run.vector("old_mean", known.old)
        job.old_m, job.pull_mean = _excess(old), float(pull @ old)
        run.vector("g_mean", np.zeros(channels))
    else:
        g_vector, g_time = _midpoint_backward(known, g_mean)
        run.vector("g_mean", g_vector / count)
        job.g_time = g_time / count
    return (
        _number(g_ratio / (spread + eps), gain),
        torch.from_numpy(g_beta).to(bias.dtype),
        _number(-g_spread * spread / c, curvature) if ctx.needs_input_grad[6] else None,
    )


def _shape(
    stride: tuple[int, int],
    padding: tuple[int, int],
    limit: float,
    inverted: bool,
    norm: lorentz.Norm | None,
    relu: bool,
) -> _Shape:
    return _Shape(
        (stride[0], stride[1]), (padding[0], padding[1]), limit, inverted, relu, norm is not None,
        0.0 if norm is None else norm.eps, norm is not None and norm.frechet,
    )  # fmt: skip


def layer(
    u: Tensor,
    p: lorentz.Planes,
    stride: tuple[int, int],
    padding: tuple[int, int],
    limit: float,
    inverted: bool = False,
    norm: lorentz.Norm | None = None,
    skip: Tensor | None = None,
    relu: bool = False,
) -> lorentz.Layer:
    """lorentz.layer, of tensors that are `usable`; differentiable once."""
    gain, bias, c = (None, None, None) if norm is None else (norm.gain, norm.bias, norm.c)
    shape = _shape(stride, padding, limit, inverted, norm, relu)
    return lorentz.Layer(*_Layer.apply(u, p.weight, p.shift, p.steepness, gain, bias, c, skip, shape))


def stored_layer(
    u: Tensor,
    p: lorentz.Planes,
    stride: tuple[int, int],
    padding: tuple[int, int],
    limit: float,
    inverted: bool,
    norm: lorentz.Norm,
    mean: Tensor,
    variance: Tensor,
    skip: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The tangents of `layer` with a mean [1, K, 1, 1] and a variance [] in place of the batch's; see lorentz.moved.

    Without a gradient: ValueError where one would be wanted.
    """
    tensors = (u, *p, norm.gain, norm.bias, mean, variance, skip)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise ValueError("stored_layer has no backward; call it under torch.no_grad()")
    run, held = _start(u, p, norm.bias, skip, _shape(stride, padding, limit, inverted, norm, relu))
    at = mean.detach().reshape(-1)
    if at.shape != (run.channels,):
        raise ValueError(f"mean is {tuple(mean.shape)}, not {(1, run.channels, 1, 1)}")
    _place(run, at.numpy(), norm.bias)
    run.job.gain = float(norm.gain) / (float(variance) + norm.eps)
    run.each("forward_layer", run.channels + 1, with_window=True)
    run.each("forward_spread", 1)  # for what it keeps of each pixel
    run.each("forward_moved")
    return held.tangents


# ---- Möbius sum of rows


class _RowResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, branch, skip, limit: float):
        if branch.shape != skip.shape:
            raise ValueError(f"branch and skip are {tuple(branch.shape)} and {tuple(skip.shape)}")
        branch = branch.contiguous()
        skip = skip.to(branch.dtype).contiguous()
        out = torch.empty_like(branch)
        _sum_rows("row_residual", limit, branch=branch, skip=skip, out=out)
        ctx.limit = limit
        ctx.save_for_backward(branch, skip)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        branch, skip = ctx.saved_tensors
        g_branch, g_skip = torch.empty_like(branch), torch.empty_like(skip)
        given = {"branch": branch, "skip": skip, "grad": grad.contiguous()}
        _sum_rows("row_residual_backward", ctx.limit, **given, g_branch=g_branch, g_skip=g_skip)
        return g_branch, g_skip, None


def _sum_rows(name: str, limit: float, **tensors: Tensor) -> None:
    branch = tensors["branch"]
    size = branch.shape[-1]
    rows = branch.numel() // size
    job = _SumJob(rows=rows, size=size, limit=limit, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
    _each(getattr(_loaded(branch.dtype), name), [job], -(-rows // ROWS), branch.numel())


def row_residual(branch: Tensor, skip: Tensor, limit: float) -> Tensor:
    """lorentz.residual along the last dimension, of tensors that are `usable`; differentiable once."""
    return _RowResidual.apply(branch, skip, limit)
