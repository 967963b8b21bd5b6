"""An op, declared once: what it takes and gives, by name.

From the declaration follow the registered `torch.ops.mdepth` function with its fake kernel, autograd and autocast, the
shorter way to the same kernels where nothing traces, the memory of the outputs, the checks before an address is taken,
and the filling of the C++ parameters, whose members have the names used here.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mdepth_fast import _dispatch, _native

__all__ = ["Array", "Backward", "Op", "T", "array", "total"]

_LIBRARY = torch.library.Library("mdepth", "FRAGMENT")
# An output has the layout that the fake kernel says only if the inputs keep theirs.
_TAGS = (
    torch.Tag.pt2_compliant_tag,
    getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order),
)
_SCHEMA_TYPES: dict[Any, str] = {int: "SymInt", float: "float", bool: "bool", str: "str"}
_SCHEMA_TYPES |= {list[int]: "SymInt[]", list[float]: "float[]", list[bool]: "bool[]"}

OPS: "dict[str, Op]" = {}

Values = dict[str, Any]


@dataclass(frozen=True)
class Array:
    """A tensor of a declaration.

    Sizes are numbers, names ("height"), or a name times or plus a number ("2*bins", "bins+1"): whole numbers that all
    arrays of a call share, and members of the C++ parameters. "..." stands for any shape.
    """

    sizes: tuple[int | str, ...]
    dtype: torch.dtype | None = None  # None: that of the first input, float32 or float64
    like: str | None = None  # an output of the dtype of this input
    optional: bool = False  # an input that may be None
    many: str | None = None  # an input that is a list of such tensors, as many as the size of this name
    only_if: str | None = None  # an output that is made where the flag of this name is set
    of: str | None = None  # an output that is made where this optional input is given
    zeroed: bool = False  # an output that kernels add to
    total: bool = False  # an output that kernels write in float64

    @functools.cached_property
    def dims(self) -> tuple[tuple[int, str, int], ...]:
        """Each size as (factor, name, summand); a number has no name."""
        return tuple(_parse(one) for one in self.sizes if one != "...")

    def shape(self, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple([factor * sizes[name] + summand if name else summand for factor, name, summand in self.dims])


def T(*sizes: int | str, **options: Any) -> Array:
    """An array of the working dtype, float32 or float64."""
    return Array(sizes, **options)


def array(dtype: torch.dtype, *sizes: int | str, **options: Any) -> Array:
    return Array(sizes, dtype, **options)


def total(*sizes: int | str) -> Array:
    """An output that is summed in float64 and given in the working dtype."""
    return Array(sizes, total=True)


def _parse(size: int | str) -> tuple[int, str, int]:
    if isinstance(size, int):
        return 0, "", size
    factor, star, name = size.rpartition("*")
    name, _, summand = name.partition("+")
    return int(factor) if star else 1, name, int(summand or 0)


@dataclass(frozen=True)
class Backward:
    """How the gradient of an op's first output becomes those of its inputs.

    takes: the inputs, options, outputs and kept arrays of the forward that it reads.
    gradients: the inputs that get one; the kernel `<op>_backward` writes it as `grad_<input>`.
    same: the inputs whose gradient is that of the output itself.
    zeroed: those of the gradients that kernels add to.
    asks: members of the C++ parameters that are looked up in each call.
    function: the whole backward in PyTorch for every backend, in place of kernels: by keyword, what `takes` names and
        `grad`; returns the gradients in order, that of a list of inputs as one tensor stacked along a new first axis.
    """

    takes: tuple[str, ...]
    gradients: tuple[str, ...]
    same: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    asks: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    function: Callable[..., Any] | None = None


class Kernel:
    """A registered function: named arrays and options in, arrays out; an implementation for each backend."""

    def __init__(
        self,
        name: str,
        inputs: Mapping[str, Array],
        options: Mapping[str, Any],
        outputs: Mapping[str, Array],
        *,
        of_nothing: float | None = None,
        asks: Mapping[str, Callable[[], Any]] | None = None,
        any_layout: bool = False,
        after: Callable[..., None] | None = None,
        sane: Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> None:
        self.name, self.inputs, self.outputs, self.sane = name, dict(inputs), dict(outputs), sane
        self.of_nothing, self.asks, self.any_layout, self.after = of_nothing, dict(asks or {}), any_layout, after
        flags = dict.fromkeys(one.only_if for one in outputs.values() if one.only_if)
        self.options = {**options, **dict.fromkeys(flags, bool)}
        self._leading = next(iter(self.inputs))
        self._given_sizes = [name for name, kind in self.options.items() if kind is int]
        self._choices = {name: kind for name, kind in self.options.items() if isinstance(kind, tuple)}

    def first(self, values: Values) -> Tensor:
        """The tensor that says device and working dtype."""
        first = values[self._leading]
        return first[0] if self.inputs[self._leading].many else first  # type: ignore[no-any-return]

    def members(self) -> set[str]:
        """The members of the C++ parameters that a call fills in."""
        arrays = {**self.inputs, **self.outputs}
        sizes = {name for one in arrays.values() for _, name, _ in one.dims if name}
        sizes |= {one.many for one in arrays.values() if one.many}
        flags = {one.only_if for one in self.outputs.values()}
        return {*arrays, *sizes, *self.asks, *(name for name in self.options if name not in flags)}

    def schema(self) -> str:
        arguments = [
            f"Tensor{'[]' if one.many else '?' if one.optional else ''} {name}" for name, one in self.inputs.items()
        ]
        kinds = {name: str if isinstance(kind, tuple) else kind for name, kind in self.options.items()}
        arguments += [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in kinds.items()]
        outputs = ", ".join("Tensor" for _ in self.outputs)
        return f"{self.name}({', '.join(arguments)}, str backend) -> ({outputs})"

    def values(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Values:
        """The arguments of the registered function by name, `backend` among them."""
        return {**dict(zip((*self.inputs, *self.options, "backend"), arguments)), **keywords}

    def arguments(self, values: Values) -> list[Any]:
        """The inverse, without `backend`."""
        return [values[name] for name in self.inputs] + [values[name] for name in self.options]

    def sizes(self, values: Values, *, check: bool = True) -> dict[str, Any]:
        """All sizes by name, of arrays and given ones. A tensor of another shape is an error, unless not `check`."""
        sizes = {name: values[name] for name in self._given_sizes}
        for name, one in self.inputs.items():
            value, many = values[name], one.many
            if value is None:
                continue
            if many:
                sizes[many] = len(value)
            if one.sizes == ("...",):
                continue
            for tensor in value if many else (value,):
                shape = tensor.shape
                right = len(shape) == len(one.dims)
                for got, (factor, symbol, summand) in zip(shape, one.dims):
                    if symbol and symbol not in sizes:
                        sizes[symbol] = (got - summand) // factor if factor != 1 or summand else got
                    if check and got != (factor * sizes[symbol] + summand if symbol else summand):
                        right = False
                if check and not right:
                    want = one.shape(sizes)
                    raise RuntimeError(f"{self.name}: {name}: expected shape {want}, got {tuple(shape)}")
        return sizes

    def allocate(self, values: Values, sizes: Mapping[str, Any], *, raw: bool = False) -> dict[str, Tensor | None]:
        """Memory for the outputs, None for what no flag asks for; `raw`: sums in float64, as kernels write them."""
        like = self.first(values)
        made: dict[str, Tensor | None] = {}
        for name, one in self.outputs.items():
            if (one.only_if and not values[one.only_if]) or (one.of and values[one.of] is None):
                made[name] = None
                continue
            dtype = torch.float64 if raw and one.total else self._dtype(one, values)
            make = torch.zeros if one.zeroed else torch.empty
            made[name] = make(one.shape(sizes), dtype=dtype, device=like.device)
        return made

    def _dtype(self, one: Array, values: Values) -> torch.dtype:
        if one.dtype is not None or one.like is None or values[one.like] is None:
            return one.dtype or self.first(values).dtype
        return next(iter(_listed(values[one.like]))).dtype  # type: ignore[no-any-return]

    def run(self, backend: str, values: Values) -> tuple[Tensor | None, ...]:
        """The outputs by `backend`; None for those that no flag asks for."""
        if not self.any_layout:
            values = {name: _contiguous(value) if name in self.inputs else value for name, value in values.items()}
        outputs = _dispatch.select(self.name, backend)(**values)
        _dispatch.ran(self.name, backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if self.after is not None:
            self.after(outputs[0], **values)
        return outputs

    def native(self, backend: str, **values: Any) -> tuple[Tensor | None, ...]:
        """The implementation of every backend that runs C++: "cpu", "cuda", "nvrtc"."""
        sizes = self.sizes(values)
        if self.sane is not None and (wrong := self.sane(sizes)):
            raise RuntimeError(f"{self.name}: expected {wrong}, got {sizes}")
        outputs = self.allocate(values, sizes, raw=True)
        first = self.first(values)
        dtype, device = first.dtype, first.device
        if self.of_nothing is None or sizes["batch"]:
            members: Values = {**sizes, "dtype": _native.code(dtype)}
            for name in self.options:
                members[name] = values[name]
            for name, known in self._choices.items():
                if values[name] not in known:
                    raise RuntimeError(f"{self.name}: {name}: expected one of {', '.join(known)}, got {values[name]!r}")
                members[name] = _native.code(values[name])
            for name, ask in self.asks.items():
                members[name] = ask()
            for name, one in self.inputs.items():
                kind, value = one.dtype or dtype, values[name]
                if one.many:
                    members[name] = [_native.address(tensor, name, kind, device) for tensor in value]
                else:
                    members[name] = 0 if value is None else _native.address(value, name, kind, device)
            for name, value in outputs.items():
                members[name] = 0 if value is None else value.data_ptr()
            _native.run(self.name, backend, members, device)
        else:
            for name, value in outputs.items():
                if self.outputs[name].total and value is not None:
                    value.fill_(self.of_nothing)
        return tuple(
            value.to(dtype) if self.outputs[name].total and value is not None else value
            for name, value in outputs.items()
        )

    def register(self, choose: Callable[[str, torch.device], str], autocast: bool) -> None:
        """Defines `torch.ops.mdepth.<name>`, opaque: the backend is chosen inside, when it runs."""
        _LIBRARY.define(self.schema(), tags=_TAGS)

        def implementation(*arguments: Any, **keywords: Any) -> Any:
            values = self.values(arguments, keywords)
            first = self.first(values)
            return self._given(self.run(choose(values.pop("backend"), first.device), values), values)

        def fake(*arguments: Any, **keywords: Any) -> Any:
            values = self.values(arguments, keywords)
            devices = {one.device for name in self.inputs for one in _listed(values[name]) if one is not None}
            if len(devices) > 1:
                raise RuntimeError(f"{self.name}: expected tensors on one device, got {sorted(map(str, devices))}")
            return self._given(self.fake(values), values)

        for backend in _native.backends(self.name):
            _dispatch.implementation(self.name, backend)(functools.partial(self.native, backend))
        _LIBRARY.impl(self.name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"mdepth::{self.name}", fake, lib=_LIBRARY)
        if autocast:
            for device_type in ("cpu", "cuda"):
                torch.library.register_autocast(f"mdepth::{self.name}", device_type, torch.float32, lib=_LIBRARY)

    def fake(self, values: Values) -> tuple[Tensor | None, ...]:
        return tuple(self.allocate(values, self.sizes(values, check=False)).values())

    def _given(self, outputs: Sequence[Tensor | None], values: Values) -> Any:
        """As the registered function returns them: what nobody asked for is empty."""
        device = self.first(values).device
        given = [
            torch.empty(0, dtype=self._dtype(one, values), device=device) if output is None else output
            for output, one in zip(outputs, self.outputs.values())
        ]
        return given[0] if len(given) == 1 else tuple(given)


def _contiguous(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.contiguous()
    return value if value is None else [one.contiguous() for one in value]


class Op:
    """An op and its gradient.

    Args:
        name: on every floor.
        reference: the same in plain PyTorch, by keyword; returns the public outputs.
        inputs, outputs: arrays by name. kept: outputs for the backward alone.
        options: other arguments by name, with their types; an int is a size, a tuple the strings that there are.
        backward: None where the op has no gradient.
        of_nothing: what `total` outputs are for an empty batch, where that is not left to the kernels.
        any_layout: implementations take any strides and dtype, and fill the C++ parameters themselves; the others get
            contiguous tensors of the working dtype, and are given those parameters.
        fake: the outputs' memory, where the declaration does not say it all.
        after: called with the first output, and by keyword all that was given: may explain a NaN.
        sane: what kernels need of the sizes, in words where it does not hold: the registered function is anybody's.

    A call takes `backend` as the public functions do ("" or None: the thread's choice, else automatic), and the inputs
    and options by name.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        *,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        options: Mapping[str, Any] | None = None,
        kept: Mapping[str, Array] | None = None,
        backward: Backward | None = None,
        of_nothing: float | None = None,
        any_layout: bool = False,
        fake: Callable[..., Tensor] | None = None,
        after: Callable[..., None] | None = None,
        sane: Callable[[Mapping[str, Any]], str | None] | None = None,
    ) -> None:
        self.name, self.reference, self.gradient = name, reference, backward
        self.public = len(outputs)
        self.forward = Kernel(
            name,
            inputs,
            options or {},
            {**outputs, **(kept or {})},
            of_nothing=of_nothing,
            any_layout=any_layout,
            after=after,
            sane=sane,
        )
        if fake is not None:
            self.forward.fake = lambda values: (fake(**values),)  # type: ignore[method-assign]
        self.forward.register(self._resolved, autocast=not any_layout)
        self.backward = None if backward is None else self._declare_backward(backward)
        self._check_members()
        torch.library.register_autograd(
            f"mdepth::{name}", self._registered_backward, setup_context=self._setup_context, lib=_LIBRARY
        )
        OPS[name] = self
        self._function = type(name, (_Function,), {})  # the graph's nodes and the traceback say which op it was

    def _check_members(self) -> None:
        """The C++ parameters have the members that were declared, and no others."""
        if _native.unavailable():
            return  # said when an op is called
        kernels = [one for one in (self.forward, self.backward) if one and _native.has(one.name) and not one.any_layout]
        want = {"dtype", "threads", "workspace"}.union(*(one.members() for one in kernels))
        for kernel in kernels:
            have = set(_native.params(kernel.name).names)
            if wrong := (have ^ want) - {"workspace"}:
                raise RuntimeError(f"{kernel.name}: parameters of C++ and declaration differ in {sorted(wrong)}")

    def _declare_backward(self, gradient: Backward) -> Kernel:
        forward = self.forward
        arrays = {**forward.inputs, **forward.outputs}
        # Every input that gets a gradient is passed on: where a second derivative is asked for it leads to the error.
        taken = [*dict.fromkeys((*gradient.takes, *gradient.gradients))]
        inputs = {"grad": next(iter(forward.outputs.values()))}
        inputs |= {name: arrays[name] for name in taken if name in arrays}
        inputs = {name: replace(one, only_if=None, of=None, zeroed=False, total=False) for name, one in inputs.items()}
        options = {name: forward.options[name] for name in taken if name in forward.options}
        several = len(gradient.gradients) > 1
        outputs = {}
        for name in gradient.gradients:
            one = forward.inputs[name]
            sizes = (one.many, *one.sizes) if one.many else one.sizes
            flag = f"need_{name}" if several else None
            outputs[f"grad_{name}"] = Array(sizes, one.dtype, like=name, only_if=flag, zeroed=name in gradient.zeroed)
        kernel = Kernel(
            f"{self.name}_backward",
            inputs,
            options,
            outputs,
            asks=gradient.asks,
            any_layout=forward.any_layout,
            sane=forward.sane,
        )
        if function := gradient.function:
            for name in _dispatch.BACKENDS:
                _dispatch.implementation(kernel.name, name)(function)
        kernel.register(self._resolved, autocast=False)

        def refuse(ctx: Any, *grads: Any) -> None:
            raise _second_derivative(self.name)

        torch.library.register_autograd(f"mdepth::{kernel.name}", refuse, lib=_LIBRARY)
        return kernel

    def __call__(self, backend: str | None, **values: Any) -> Any:
        device = self.forward.first(values).device
        asked = _dispatch.asked(backend)
        if _dispatch.uses_reference(self.name, asked, device) or _transforms(self.name, asked):
            with _dispatch.full_precision(device):
                outputs = self.reference(**values)
            looked_into = torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
            if self.forward.after is not None and not looked_into:
                self.forward.after(outputs, **values)
            return outputs
        leaves = self._leaves(values)
        need = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in leaves)
        if "need_grad" in self.forward.options:
            values["need_grad"] = need
        if _traces(values, self.forward.inputs):
            return self._shown(getattr(torch.ops.mdepth, self.name)(*self.forward.arguments(values), asked))
        name = self._resolved(asked, device)
        if need:
            return self._function.apply(self, name, values, *leaves)  # type: ignore[attr-defined]
        return self._shown(self.forward.run(name, values))

    def _shown(self, outputs: Any) -> Any:
        """The public ones; one alone is bare."""
        if isinstance(outputs, Tensor):
            return outputs
        return outputs[0] if self.public == 1 else tuple(outputs[: self.public])

    def _resolved(self, asked: str, device: torch.device) -> str:
        return _dispatch.resolve(self.name, asked, device)

    def _leaves(self, values: Values) -> list[Tensor]:
        """The tensors that may get a gradient, lists of them laid out."""
        names = (*self.gradient.gradients, *self.gradient.same) if self.gradient else self.forward.inputs
        return [tensor for name in names for tensor in _listed(values[name]) if tensor is not None]

    # What both ways of autograd share.

    def _save(self, ctx: Any, values: Values, outputs: Mapping[str, Any], backend: str) -> None:
        if self.backward is None:
            return
        names = [name for name in self.backward.inputs if name != "grad"]
        kept = {name: outputs[name] if name in outputs else values[name] for name in names}
        ctx.save_for_backward(*(tensor for value in kept.values() for tensor in _listed(value)))
        ctx.counts = {name: len(value) if isinstance(value, list | tuple) else None for name, value in kept.items()}
        ctx.options = {name: values[name] for name in self.backward.options if name in values}
        ctx.backend = backend

    def _restored(self, ctx: Any) -> Values:
        tensors = iter(ctx.saved_tensors)
        values: Values = {
            name: next(tensors) if count is None else [next(tensors) for _ in range(count)]
            for name, count in ctx.counts.items()
        }
        return {**values, **ctx.options}

    def _gradients(self, values: Values, backend: str, wanted: Mapping[str, bool]) -> dict[str, Any]:
        """The gradient of each input that is wanted, a list for a list."""
        assert self.backward is not None and self.gradient is not None
        same = {name: values["grad"] if wanted[name] else None for name in self.gradient.same}
        if not any(wanted[name] for name in self.gradient.gradients):
            return dict.fromkeys(self.gradient.gradients) | same
        for name in self.backward.options:
            if name.startswith("need_"):
                values[name] = wanted[name.removeprefix("need_")]
        if self.gradient.function is None and torch._C._functorch.is_legacy_batchedtensor(values["grad"]):
            raise RuntimeError(
                f"{self.name}: the fused backends take one gradient at a time (no is_grads_batched, no vectorize); "
                'call it with backend="reference"'
            )
        if _traces(values, self.backward.inputs) or torch.is_grad_enabled():
            found = getattr(torch.ops.mdepth, self.backward.name)(*self.backward.arguments(values), backend)
            outputs = found if isinstance(found, tuple) else (found,)
        else:
            outputs = self.backward.run(self._resolved(backend, values["grad"].device), values)
        return {
            name: (list(value.unbind(0)) if self.forward.inputs[name].many else value) if wanted[name] else None
            for name, value in zip(self.gradient.gradients, outputs)
        } | same

    # The registered function's.

    def _setup_context(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        values = self.forward.values(inputs, {})
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)
        self._save(ctx, values, dict(zip(self.forward.outputs, outputs)), values["backend"])

    def _registered_backward(self, ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        counted = {name: index for index, name in enumerate(self.forward.inputs)}
        found: dict[str, Any] = {}
        if self.gradient is None:
            raise _no_gradient(self.name)
        if grad is not None:
            names = (*self.gradient.gradients, *self.gradient.same)
            needs = {name: ctx.needs_input_grad[counted[name]] for name in names}
            wanted = {name: any(need) if isinstance(need, list | tuple) else need for name, need in needs.items()}
            if any(wanted.values()):
                found = self._gradients({"grad": grad, **self._restored(ctx)}, ctx.backend, wanted)
        result = []
        for name, one in self.forward.inputs.items():
            value = found.get(name)
            if one.many:
                need = ctx.needs_input_grad[counted[name]]
                count = len(need) if isinstance(need, list | tuple) else ctx.counts.get(name, 0)
                value = [None] * count if value is None else value
            result.append(value)
        return (*result, *[None] * (len(self.forward.options) + 1))


class _Function(torch.autograd.Function):
    """The way of a call that nothing traces: straight to the kernels."""

    @staticmethod
    def forward(ctx: Any, op: Op, backend: str, values: Values, *leaves: Tensor) -> Any:
        outputs = op.forward.run(backend, values)
        ctx.op = op
        gradient = op.gradient
        names = (*gradient.gradients, *gradient.same) if gradient else ()
        ctx.leaves = {name: sum(tensor is not None for tensor in _listed(values[name])) for name in names}
        ctx.set_materialize_grads(False)
        op._save(ctx, values, dict(zip(op.forward.outputs, outputs)), backend)
        public = op._shown(outputs)
        if op.public > 1:
            ctx.mark_non_differentiable(*public[1:])
        return public

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:  # type: ignore[override]
        op: Op = ctx.op
        if op.gradient is None:
            raise _no_gradient(op.name)
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        values = {"grad": grad, **op._restored(ctx)}
        needs = iter(ctx.needs_input_grad[3:])
        wanted, counts = {}, {}
        for name in (*op.gradient.gradients, *op.gradient.same):
            counts[name] = ctx.leaves[name]
            wanted[name] = any([next(needs) for _ in range(counts[name])])
        found = op._gradients(values, ctx.backend, wanted)
        leaves: list[Tensor | None] = []
        for name, count in counts.items():
            leaves += [None] * count if found[name] is None else _listed(found[name]) if count else []
        return None, None, None, *leaves


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _traces(values: Values, inputs: Mapping[str, Array]) -> bool:
    """Whether anything looks at what is called: compiler, exporter, mode, subclass, profiler, lazy negation.

    Then the registered function runs, which all of these know.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
    ):
        return True
    for name in inputs:
        for tensor in _listed(values[name]):
            if tensor is None:
                continue
            if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
                return True
            # Numbers that memory does not hold as they are: the dispatcher resolves them.
            if tensor.is_neg() or tensor._is_zerotensor():
                return True
    return False


def _transforms(op: str, asked: str) -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which the kernels do not know: then the reference
    runs, unless another backend was asked for."""
    if torch.compiler.is_compiling() or (
        torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0
    ):
        return False
    if asked:
        raise RuntimeError(
            f"{op}: backend {asked!r} knows neither torch.func transforms nor forward-mode derivatives; "
            'backend="reference" does'
        )
    _dispatch.warn_once(f"{op} runs as plain PyTorch under torch.func transforms and forward-mode differentiation")
    return True


def _no_gradient(op: str) -> RuntimeError:
    return RuntimeError(f'{op}: the fused backends have no gradient; call it with backend="reference", which has one')


def _second_derivative(op: str) -> RuntimeError:
    return RuntimeError(
        f'{op}: the fused backends have no second derivative; call it with backend="reference", which has one'
    )
