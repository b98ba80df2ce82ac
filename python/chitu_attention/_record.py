# SPDX-License-Identifier: Apache-2.0
"""record(): the errors of each method on the attention that a model computes, layer by layer and head by head."""

import os
import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import torch

from . import _sdpa
from ._attention import attention, methods as _methods
from ._exact import _visible
from ._torch import _autocast

_LARGEST = 1 << 24  # numbers of a kind that the reference has in memory at once

Error = namedtuple("Error", "layer head method calls rel_l1 worst_row lse")
Error.__doc__ = """Of one method in one head (None: of all heads of the layer). rel_l1: sum of |difference| over sum of |exact|, of all calls;
worst_row: the largest of a query's; lse: the largest difference of the LSE."""


def _truth(query, key, value, rows, seen, scale):
    """(out, lse) of exact attention for the queries `rows`, in double precision. seen: bool (rows, keys); None for all keys."""
    batch, heads, _, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    group = heads // kv_heads
    asked = query[:, :, rows].reshape(batch, kv_heads, group * len(rows), dim)
    out = torch.empty(asked.shape, dtype=torch.float64, device=query.device)
    lse = torch.empty(asked.shape[:3], dtype=torch.float64, device=query.device)
    hidden = None if seen is None else ~seen.repeat(group, 1)
    step = max(1, _LARGEST // max(1, batch * max(asked.shape[2], dim) * keys))
    for first in range(0, kv_heads, step):
        part = slice(first, first + step)
        scores = asked[:, part].double() @ key[:, part].double().transpose(-1, -2) * scale
        if hidden is not None:
            scores.masked_fill_(hidden, -torch.inf)
        lse[:, part] = scores.logsumexp(-1)
        out[:, part] = scores.softmax(-1).nan_to_num_(0.0) @ value[:, part].double()  # a query that sees no key has no weights
    return out.view(batch, heads, len(rows), dim), lse.view(batch, heads, len(rows))


def _mask(causal=False, window=None, query_positions=None, key_positions=None):
    """(query positions, key positions, left, right) as _visible() takes them."""
    pair = lambda given: None if given is None else (given, 1) if isinstance(given, int) else tuple(given)
    left, right = (-1 if side is None else side for side in window or (-1, -1))
    return pair(query_positions), pair(key_positions), left, 0 if causal else right


class _Sums:
    """Of one layer and method; all but `calls` are on the tensors' device, so that nothing waits for it."""

    def __init__(self, heads, device):
        self.calls = 0
        self.difference, self.size, self.worst_row, self.lse = (torch.zeros(heads, dtype=torch.float64, device=device) for _ in range(4))

    def add(self, out, lse, true_out, true_lse):
        """Gives this call's relative L1, on the device."""
        difference, size = (out - true_out).abs_(), true_out.abs()
        rows, row_sizes = difference.sum(-1), size.sum(-1)
        self.calls += 1
        self.difference = self.difference + rows.sum((0, 2))  # a tensor of inference mode could not be written to outside it
        self.size = self.size + row_sizes.sum((0, 2))
        self.worst_row = torch.maximum(self.worst_row, _ratio(rows, row_sizes).amax((0, 2)))
        apart = torch.where(lse == true_lse, 0.0, (lse - true_lse).abs())  # both may be -inf
        self.lse = torch.maximum(self.lse, apart.amax((0, 2)))
        return _ratio(rows.sum(), row_sizes.sum())


def _ratio(difference, size):
    return torch.where(difference == 0, 0.0, difference / size)


class _Clock:
    """How long the measured calls took in all; on a GPU by events, which wait for nothing."""

    def __init__(self):
        self.seconds = 0.0
        self.events = []

    @contextmanager
    def running(self, on_gpu):
        if on_gpu:
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            yield
            pair[1].record()
            self.events.append(pair)
        else:
            start = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - start

    def total(self):
        for first, last in self.events:
            last.synchronize()
            self.seconds += first.elapsed_time(last) / 1000
        self.events = []
        return self.seconds


def _progress(wanted):
    """A bar of tqdm, if that is installed. wanted: None for one on a terminal only."""
    if wanted is None:
        wanted = sys.stderr.isatty()
    if not wanted:
        return None
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(desc="chitu_attention.record", unit=" calls", leave=False)


class Record(_sdpa.SdpaMode):
    """What record() gives: `errors()`, `table()`, `plot()`, `choose()`.

    skipped: {why: number} of the calls that were not measured; saved: the files that were written."""

    def __init__(self, model, methods, rows, max_l1, save, save_at_most, progress):
        super().__init__("torch", False, {})
        self.skipped, self.saved = {}, []
        self._model, self._methods, self._rows = model, methods, rows
        self._max_l1, self._save, self._save_at_most = max_l1, save, save_at_most
        self._wants_progress, self._bar = progress, None
        self._sums, self._refused = {}, {}  # layer -> method -> what
        self._clocks = {name: _Clock() for name in methods}
        self._warm = set()
        self._inside, self._hooks = [], []

    def __enter__(self):
        self._stance = torch.compiler.set_stance("force_eager")  # what is compiled runs as it was written
        for name, module in self._model.named_modules():
            self._hooks.append(module.register_forward_pre_hook(lambda module, inputs, name=name: self._inside.append(name)))
            self._hooks.append(module.register_forward_hook(lambda module, inputs, outputs: self._leave(), always_call=True))
        self._bar = _progress(self._wants_progress)
        self._before, _sdpa._modes.record = _sdpa.recorder(), self
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        self._stance.__exit__(*error)
        _sdpa._modes.record = self._before
        self._hooks, self._inside = [], []
        if self._bar is not None:
            self._bar.close()
        return super().__exit__(*error)

    def _leave(self):
        self._inside.pop()

    def _count(self, reason):
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def call(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        self.note(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        return _sdpa._SDPA(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    def note(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        """Measures a call of scaled_dot_product_attention(), or counts why not."""
        reason = _sdpa._reason(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa, "exact")
        if reason is None:
            causal, first = _sdpa._causal(attn_mask, is_causal)
            self.observe(*_sdpa._arranged(query, key, value), causal=causal, query_positions=first, scale=scale)
        else:
            self._count(reason)

    def observe(self, query, key, value, *, scale=None, query_starts=None, key_starts=None, **options):
        """Measures a call of attention() on (batch, heads, tokens, dim) tensors, or counts why not. options: causal, window, and positions,
        as attention() takes them."""
        if not self._inside:
            self._count("a call outside the model")
        elif query_starts is not None:
            self._count("packed sequences")
        elif any(isinstance(given, (list, tuple)) and not isinstance(given[0], int)
                 for given in (options.get("query_positions"), options.get("key_positions"))):
            self._count("positions of each sequence's own")
        elif 0 in query.shape or 0 in key.shape:
            self._count("query or key is empty")
        else:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                tensors = _autocast(*(x.detach() for x in (query, key, value)))
                self._measure(*tensors, query.shape[-1]**-0.5 if scale is None else scale, options)

    def _measure(self, query, key, value, scale, options):
        layer = self._inside[-1]
        queries, keys = query.shape[2], key.shape[2]
        count = min(queries, self._rows)
        rows = torch.arange(1, count + 1, device=query.device) * queries // count - 1
        query_positions, key_positions, left, right = _mask(**options)
        seen = _visible(queries, keys, query_positions, key_positions, left, right, query.device, rows)
        truth = _truth(query, key, value, rows, seen, scale)
        sums = self._sums.setdefault(layer, {})
        broken = None
        for name, method in self._methods.items():
            try:
                out, lse = self._attend(name, query, key, value, method=method, scale=scale, return_lse=True, **options)
            except NotImplementedError as error:
                self._refused.setdefault(layer, {})[name] = str(error).strip().splitlines()[-1].strip()
                continue
            if name not in sums:
                sums[name] = _Sums(query.shape[1], query.device)
            error = sums[name].add(out[:, :, rows].double(), lse[:, :, rows].double(), *truth)
            if self._save is not None and len(self.saved) < self._save_at_most and broken is None and not error.item() <= self._max_l1:
                broken = name, error.item()
        if broken is not None:
            self._write(layer, *broken, query, key, value, scale, options)
        if self._bar is not None:
            self._bar.set_postfix_str(layer, refresh=False)
            self._bar.update()

    def _attend(self, name, *tensors, **options):
        if name not in self._warm:  # the first call has memory to find
            attention(*tensors, **options)
            self._warm.add(name)
        with self._clocks[name].running(tensors[0].is_cuda):
            return attention(*tensors, **options)

    def _write(self, layer, method, error, query, key, value, scale, options):
        """A file that `chitu accuracy --input` reads: it has no scale, and its last query stands at the last key, so the tensors are made to
        fit."""
        query_positions, key_positions, left, right = _mask(**options)
        keys, window = key.shape[2], (left, right) != (-1, -1)
        if window and query_positions is not None:
            first_key, key_step = key_positions or (0, 1)
            last = query_positions[0] + query.shape[2] - first_key  # how many keys stand up to the last query
            if (query_positions[1], key_step) != (1, 1) or last > keys or (last < keys and right != 0):
                self._count("not saved: a file has no word for where its queries stand")
                return
            key, value = key[:, :, :last], value[:, :, :last]
        usual = query.shape[-1]**-0.5
        if abs(scale - usual) > 1e-6 * usual:
            query, key, value = query.float() * (scale / usual), key.float(), value.float()
        os.makedirs(self._save, exist_ok=True)
        path = os.path.join(self._save, f"{layer or 'model'}.{len(self.saved)}.safetensors")
        command = f"chitu accuracy --input {path}{f' --window {left},{right}' if window else ''}"
        _save(path, {"q": query, "k": key, "v": value}, {"layer": layer, "method": method, "rel_l1": f"{error:.6f}", "command": command})
        self.saved.append(path)

    def errors(self, heads=True):
        """An Error for each layer, head and method, in the model's order; heads=False: for each layer and method."""
        result = []
        for layer, by_method in self._sums.items():
            for name, s in by_method.items():
                difference, size, worst_row, lse = torch.stack((s.difference, s.size, s.worst_row, s.lse)).cpu()
                if heads:
                    by_head = zip(_ratio(difference, size).tolist(), worst_row.tolist(), lse.tolist())
                    result += [Error(layer, head, name, s.calls, *numbers) for head, numbers in enumerate(by_head)]
                else:
                    result.append(Error(layer, None, name, s.calls, _ratio(difference.sum(), size.sum()).item(), worst_row.max().item(),
                                        lse.max().item()))
        return result

    def seconds(self):
        """{method: how long its measured calls took in all}."""
        return {name: clock.total() for name, clock in self._clocks.items()}

    def _by_layer(self):
        """{layer: {method: Error}}, the layers with the largest error first."""
        layers = {layer: {} for layer in self._sums}
        for error in self.errors(heads=False):
            layers[error.layer][error.method] = error
        worst = lambda item: -max((error.rel_l1 for error in item[1].values()), default=0.0)
        return dict(sorted(layers.items(), key=worst))

    def table(self, method=None):
        """A text, the layers with the largest error first: relative L1 of each method, that of the worst row in brackets.

        method: a name, for all heads of each layer by this method, with the LSE's error."""
        if method is not None and method not in self._methods:
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(self._methods)}")
        layers = self._by_layer()
        if method is None:
            lines = [["layer", "calls", *self._methods]]
            for layer, errors in layers.items():
                cells = [f"{errors[m].rel_l1:.4f} ({errors[m].worst_row:.3f})" if m in errors else "refused" for m in self._methods]
                lines.append([layer or "(model)", str(max((e.calls for e in errors.values()), default=0)), *cells])
        else:
            lines = [["layer", "head", "relative L1", "worst row", "lse"]]
            of_it = {}
            for error in self.errors():
                if error.method == method:
                    of_it.setdefault(error.layer, []).append(error)
            for layer in layers:
                for e in sorted(of_it.get(layer, []), key=lambda e: -e.rel_l1):
                    lines.append([layer or "(model)", str(e.head), f"{e.rel_l1:.4f}", f"{e.worst_row:.3f}", f"{e.lse:.2e}"])
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))) for line in lines]
        refused = {(name, why) for by_method in self._refused.values() for name, why in by_method.items()}
        text += [f"{name} is refused: {why}" for name, why in sorted(refused)]
        text += [f"{count} calls were not measured: {why}" for why, count in sorted(self.skipped.items(), key=lambda item: -item[1])]
        if not layers and not self.skipped:
            text.append("the model made no call of scaled_dot_product_attention (in transformers it does with attn_implementation=\"sdpa\", or \"chitu\")")
        return "\n".join(text)

    def choose(self, max_l1=0.02, methods=None):
        """{layer: method} for replace(), the layers with the largest error first: of each the fastest method whose relative L1 is at most
        max_l1, "torch" where none is. How fast a method is says the time that all of its measured calls took.

        methods: names to choose from, instead, in this order."""
        unknown = set(methods or ()) - set(self._methods)
        if unknown:
            raise ValueError(f"methods has {sorted(unknown)[0]!r}, which was not recorded; there are {', '.join(self._methods)}")
        seconds = self.seconds()
        order = list(methods) if methods is not None else sorted(self._methods, key=seconds.get)
        choice = {}
        for layer, errors in self._by_layer().items():
            refused = self._refused.get(layer, {})
            fitting = (name for name in order if name in errors and name not in refused and errors[name].rel_l1 <= max_l1)
            name = next(fitting, "torch")
            choice[layer] = self._methods.get(name, name)
        return choice

    def plot(self, path):
        """Draws each layer's relative L1 by every method, as a line, with the range of its heads. It needs matplotlib."""
        if not self._sums:
            raise ValueError("nothing was recorded; table() says why")
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("plot() draws with matplotlib, which is not installed: pip install matplotlib. table() needs nothing") from None
        layers = list(self._sums)
        figure = Figure(figsize=(max(6.0, 2.5 + 0.3 * len(layers)), 4.5), layout="constrained")
        axes = figure.subplots()
        of_heads, of_layers = self.errors(), self.errors(heads=False)
        for method in self._methods:
            mine = [e for e in of_layers if e.method == method]
            if not mine:
                continue
            x = [layers.index(e.layer) for e in mine]
            heads = [[e.rel_l1 for e in of_heads if e.method == method and e.layer == one.layer] for one in mine]
            line, = axes.plot(x, [e.rel_l1 for e in mine], marker="o", markersize=3, label=method)
            axes.fill_between(x, [min(h) for h in heads], [max(h) for h in heads], color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_yscale("log")
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
        axes.set_ylabel("relative L1 to exact attention; shaded: its heads")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.savefig(path)


_SAFETENSORS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _save(path, tensors, metadata):
    """A .safetensors file: the length of a header, the header, the tensors' bytes."""
    import json
    header, parts, place = {"__metadata__": metadata}, [], 0
    for name, tensor in tensors.items():
        data = bytes(tensor.cpu().clone(memory_format=torch.contiguous_format).untyped_storage())  # the clone's is just its own
        header[name] = {"dtype": _SAFETENSORS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
        parts.append(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(parts))


def _chosen(methods):
    """{name: what attention() takes}."""
    known = _methods()
    if methods is None:
        return {name: name for name in known}
    if isinstance(methods, str):
        methods = [methods]
    result = dict(methods) if isinstance(methods, dict) else {name: name for name in methods}
    for name in result.values():
        if isinstance(name, str) and name not in known:
            raise ValueError(f"methods has {name!r}; there are {', '.join(known)}")
    if not result:
        raise ValueError("methods is empty; None is all of them")
    return result


def record(model, methods=None, *, rows=256, max_l1=0.05, save=None, save_at_most=8, progress=None):
    """A block in which each call of scaled_dot_product_attention that `model` makes is also computed by every method, and their errors are
    kept: of each layer (the innermost module that calls it) and head. The model computes as ever.

        with chitu_attention.record(model) as r:
            model(**inputs)
        print(r.table())
        chitu_attention.replace(model, r.choose(max_l1=0.02))

    methods: names, or {name: name or Recipe}; all methods unless given. rows: query rows of each head, evenly spread, that are compared
    with exact attention in double precision; no output is kept. save: a folder for the inputs of calls in which a method's relative L1 is
    above max_l1, as .safetensors files that `chitu accuracy --input` reads, save_at_most of them; it waits for the GPU at each call.
    progress: a bar of tqdm, if that is installed; None: on a terminal. Calls with a mask are counted in `skipped`, but those that come through
    a plug-in of this package and reach attention() are measured."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows is {rows!r}; it must be 1 or more")
    return Record(model, _chosen(methods), rows, max_l1, save, save_at_most, progress)
