# SPDX-License-Identifier: Apache-2.0
"""Who holds which tokens, and who computes what in which step: the plan of the C++ library (include/chitu/dist_c.h), by ctypes."""

import ctypes
import os
from collections import namedtuple
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_void_p

from ._library import FOLDER

SHARDINGS = ("contiguous", "zigzag", "striped", "whole")
JOINT = -1  # in place of a rank: the tokens that every rank holds

Run = namedtuple("Run", "sequence count first step")
Call = namedtuple("Call", "query_rank query_run query_runs key_rank key_run pairs")
Step = namedtuple("Step", "receives sends calls")  # receives, sends: {peer: runs}
Plan = namedtuple("Plan", "steps heads joint")  # heads: of each place of a Ulysses group: first, count, first kv head, count


class _Run(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in Run._fields]


class _Task(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), *((name, c_int64) for name in ("heads", "kv_heads", "window_left", "window_right", "joint")),
                ("joint_rear", c_int32), ("reserved", c_int32)]


class _Call(ctypes.Structure):
    _fields_ = [("step", c_int32), *((name, c_int32) for name in Call._fields[:-1]), ("pairs", c_int64)]


class _Transfer(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("step", "peer", "run", "is_send")]


class _Parts(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("steps", c_int32), ("reserved", c_int32), ("calls", POINTER(_Call)), ("calls_count", c_size_t),
                ("transfers", POINTER(_Transfer)), ("transfers_count", c_size_t), ("heads", POINTER(c_int64)), ("places", c_size_t),
                ("joint", _Run)]


def _open():
    library = ctypes.CDLL(os.path.join(FOLDER, "libchitu_dist.so"))
    if library.chitu_dist_abi_version() != 1:
        raise ImportError(f"libchitu_dist.so has ABI version {library.chitu_dist_abi_version()}, this module 1")
    library.chitu_dist_last_error.restype = c_char_p
    library.chitu_shards_free.argtypes = library.chitu_plan_free.argtypes = [c_void_p]
    return library


_dist = _open()


def _check(status):
    if status:
        raise (ValueError, NotImplementedError, MemoryError, RuntimeError)[min(status, 4) - 1](_dist.chitu_dist_last_error().decode())


def _numbers(values):
    values = [int(value) for value in values]
    return (c_int64 * max(len(values), 1))(*values)


class Shards:
    """Which rank holds which tokens of one or more sequences; made by shard(). Rank r is number r % ulysses of its Ulysses group, which is
    number r // ulysses of the ring.

    queries, keys: of each rank, the runs of tokens that its tensors hold, in their order: Run(sequence, count, first, step), whose tokens
    stand at first, first + step, ... in the sequence."""

    def __init__(self, make, ring, ulysses):
        self.ring, self.ulysses, self.size = int(ring), int(ulysses), int(ring) * int(ulysses)
        self._handle, self._plans = c_void_p(), {}
        _check(make(byref(self._handle)))
        self.queries, self.keys = ([self._runs(rank, of_keys) for rank in range(self.size)] for of_keys in (0, 1))

    def __del__(self):
        _dist.chitu_shards_free(self._handle)

    def _runs(self, rank, of_keys):
        runs, count = POINTER(_Run)(), c_size_t()
        _check(_dist.chitu_shards_runs(self._handle, c_int32(rank), c_int32(of_keys), byref(runs), byref(count)))
        return tuple(Run(*(getattr(runs[i], name) for name in Run._fields)) for i in range(count.value))

    def tokens(self, rank, keys=False):
        """How many queries, or keys, a rank holds."""
        return sum(run.count for run in (self.keys if keys else self.queries)[rank])

    def index(self, rank, keys=False):
        """Where the tokens of a rank are in the whole tensor, of which the sequences follow each other: a list of integers."""
        layout = self.keys if keys else self.queries
        begins, ends = {}, {}
        for run in (run for shard in layout for run in shard):
            last = run.first + (run.count - 1) * run.step
            begins[run.sequence] = min(begins.get(run.sequence, run.first), run.first)
            ends[run.sequence] = max(ends.get(run.sequence, last + 1), last + 1)
        offsets, total = {}, 0
        for sequence in sorted(begins):
            offsets[sequence] = total - begins[sequence]
            total += ends[sequence] - begins[sequence]
        return [offsets[run.sequence] + run.first + i * run.step for run in layout[rank] for i in range(run.count)]

    def plan(self, rank, heads, kv_heads, window, joint, joint_rear):
        """Plan of one rank; window: (left, right), -1 for no bound."""
        key = rank, heads, kv_heads, window, joint, joint_rear
        if key not in self._plans:
            self._plans[key] = self._plan(rank, _Task(ctypes.sizeof(_Task), heads, kv_heads, *window, joint, joint_rear, 0))
        return self._plans[key]

    def _plan(self, rank, task):
        handle, parts = c_void_p(), _Parts(struct_size=ctypes.sizeof(_Parts))
        _check(_dist.chitu_plan_make(self._handle, byref(task), c_int32(rank), byref(handle)))
        try:
            _check(_dist.chitu_plan_view(handle, byref(parts)))
            steps = [Step({}, {}, []) for _ in range(parts.steps)]
            for call in parts.calls[:parts.calls_count]:
                steps[call.step].calls.append(Call(*(getattr(call, name) for name in Call._fields)))
            for t in parts.transfers[:parts.transfers_count]:
                (steps[t.step].sends if t.is_send else steps[t.step].receives).setdefault(t.peer, []).append(t.run)
            heads = [tuple(parts.heads[4 * place:4 * place + 4]) for place in range(parts.places)]
            return Plan(steps, heads, Run(*(getattr(parts.joint, name) for name in Run._fields)))
        finally:
            _dist.chitu_plan_free(handle)


def shard(sharding, lengths, *, ring=1, ulysses=1, key_lengths=None):
    """Spreads sequences of these lengths over ring * ulysses ranks.

    sharding: "contiguous", "zigzag" (causal work is the same for all), "striped" (the same, by single tokens), or "whole" (packed
        sequences, each to one group of the ring).
    lengths: of the sequences' queries; an integer for one sequence. key_lengths: of their keys, if they differ: the last query stands at
        the last key. They need not divide: parts differ by one token."""
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding is {sharding!r}; it must be one of {', '.join(map(repr, SHARDINGS))}")
    lengths = [lengths] if isinstance(lengths, int) else list(lengths)
    if key_lengths is not None:
        key_lengths = [key_lengths] if isinstance(key_lengths, int) else list(key_lengths)
        if len(key_lengths) != len(lengths):
            raise ValueError(f"there are {len(lengths)} lengths, but {len(key_lengths)} key_lengths")
    return Shards(lambda handle: _dist.chitu_shards_make(
        c_int32(SHARDINGS.index(sharding)), c_int32(ring), c_int32(ulysses), _numbers(lengths),
        None if key_lengths is None else _numbers(key_lengths), c_size_t(len(lengths)), handle), ring, ulysses)


def shard_sizes(sizes, *, ring=None, ulysses=1):
    """One sequence whose shards have any sizes: rank r holds sizes[r] tokens, which follow those of rank r - 1."""
    sizes = list(sizes)
    ring = len(sizes) // ulysses if ring is None else ring
    if ring * ulysses != len(sizes):
        raise ValueError(f"there are {len(sizes)} sizes, but ring {ring} x ulysses {ulysses} is {ring * ulysses} ranks")
    return Shards(lambda handle: _dist.chitu_shards_of_sizes(c_int32(ring), c_int32(ulysses), _numbers(sizes), handle), ring, ulysses)
