# SPDX-License-Identifier: Apache-2.0
"""Attention over a sequence that lies on several ranks of torch.distributed: by a ring, by Ulysses, or by both.

    from chitu_attention import distributed
    shards = distributed.shard("zigzag", 32768, ring=2, ulysses=2)     # the same on every rank
    index = shards.index(dist.get_rank())                              # this rank's tokens of the whole
    out = distributed.attention(query, key, value, shards, causal=True)    # its query, key, value and out, (batch, heads, tokens, dim)

On the CPU keys and values are quantised once, before they travel. On a GPU they travel as they came, since quantize() here takes CPU memory:
in 16 bits, and each call quantises them; explain() says which. Tested with gloo on CPUs; with NCCL it has not been run."""

import hashlib
import pickle
from collections import namedtuple
from datetime import timedelta

import torch
import torch.distributed as dist

from ._attention import attention as _attention
from ._attention import merge, methods, quantize, version
from ._plan import JOINT, Run, Shards, shard, shard_sizes  # noqa: F401

__all__ = ["Joint", "Run", "Shards", "attention", "explain", "shard", "shard_sizes"]

Joint = namedtuple("Joint", "query key value rear", defaults=(False,))
Joint.__doc__ = """Tokens that every rank holds, queries as well as keys, such as the text beside an image: before the sequence's first key, or
(rear=True) after its last."""

_TAG, _RECORD = 4711, 4096  # bytes of what a rank says of itself before data moves


class _Transport:
    """Messages between the ranks of a task. ranks: their numbers in torch.distributed."""

    def __init__(self, group, ranks, timeout):
        self.group, self.ranks, self.seconds = group, ranks, timeout
        self.timeout = timedelta(seconds=timeout)
        self.rank = ranks.index(dist.get_rank())

    def host(self, device):
        """Where small messages may lie: in CPU memory, unless the group's backend takes none."""
        try:
            (self.group or dist.group.WORLD)._get_backend(torch.device("cpu"))
            return torch.device("cpu")
        except RuntimeError:
            return device

    def start(self, messages):
        """messages: (is_send, peer, tensor, what). Gives what wait() takes."""
        messages = [message for message in messages if message[2].numel()]
        if not messages:
            return []
        operations = [dist.P2POp(dist.isend if is_send else dist.irecv, tensor, self.ranks[peer], self.group, _TAG)
                      for is_send, peer, tensor, _ in messages]
        works = dist.batch_isend_irecv(operations)
        names = [f"rank {peer} to {'take' if is_send else 'send'} {what}" for is_send, peer, _, what in messages]
        if len(works) != len(names):  # one for all
            names = [names[0] + (f", and {len(names) - 1} more messages" if len(names) > 1 else "")] * len(works)
        return list(zip(works, names, [messages] * len(works)))

    def wait(self, started):
        for work, what, _ in started:
            try:
                work.wait(self.timeout)
            except RuntimeError as error:
                raise RuntimeError(f"rank {self.rank} waited up to {self.seconds} s for {what}: {error}") from error
        started.clear()


def _agree(wire, facts, error, device):
    """All raise the same ValueError if one rank has an error, or if their facts differ."""
    text = str(error) if error else facts
    record = hashlib.sha256(text.encode()).digest() + (b"E" if error else b"F") + text.encode()
    mine = torch.frombuffer(bytearray(record[:_RECORD].ljust(_RECORD, b"\0")), dtype=torch.uint8).to(device)
    all_of = [mine if rank == wire.rank else torch.empty_like(mine) for rank in range(len(wire.ranks))]
    others = [rank for rank in range(len(wire.ranks)) if rank != wire.rank]
    what = "what it is about to do, before step 0"
    wire.wait(wire.start([message for peer in others for message in ((False, peer, all_of[peer], what), (True, peer, mine, what))]))
    records = [bytes(x.tolist()) for x in all_of]
    texts = [x[33:].rstrip(b"\0").decode(errors="replace") for x in records]
    for rank, x in enumerate(records):
        if x[32:33] == b"E":
            raise ValueError(f"rank {rank}: {texts[rank]}")
    for rank, x in enumerate(records):
        if x[:32] != records[0][:32]:
            a, b = texts[0].splitlines(), texts[rank].splitlines()
            pair = next(((p, q) for p, q in zip(a, b) if p != q), ("nothing more to say", "something else"))
            raise ValueError(f"the ranks do not agree: rank 0 has {pair[0]}; rank {rank} has {pair[1]}")


def _bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class _Execution:
    """One call on one rank. All tensors are (batch, heads, tokens, dim)."""

    def __init__(self, wire, shards, plan, tensors, joint, options, window, threads, return_lse, stats):
        self.wire, self.shards, self.plan, self.joint, self.options = wire, shards, plan, joint, options
        self.query, self.key, self.value = tensors
        self.window, self.threads, self.return_lse, self.stats = window, threads, return_lse, stats
        self.rank, self.place = wire.rank, wire.rank % shards.ulysses
        self.heads, self.count, self.kv_first, self.kv_count = plan.heads[self.place]
        self.raw = _travels_raw(self.query, options["method"])
        self.sends, self.state, self.key_values = [], {}, {}

    def peers(self):
        first = self.rank - self.place
        return [first + (self.place + i) % self.shards.ulysses for i in range(1, self.shards.ulysses)]

    def run(self):
        self.exchange_queries()
        self.quantize_own()
        self.exchange_sizes()
        self.key_values = {(self.rank, i): kv for i, kv in enumerate(self.own[self.kv_first])}
        if self.joint:
            self.key_values[JOINT, 0] = self.packed(self.joint.key, self.joint.value, slice(self.kv_first, self.kv_first + self.kv_count))
        for number, step in enumerate(self.plan.steps):
            coming, started = self.post(number + 1)
            for call in step.calls:
                self.attend(call)
            self.wire.wait(started)
            self.key_values = {which: self.unpacked(given) for which, given in coming.items()}
        answer = self.finish()
        answer = (answer, self.finish_joint()) if self.joint else answer
        self.wire.wait(self.sends)
        return answer

    def count_bytes(self, name, tensors):
        if self.stats is not None:
            self.stats[name] = self.stats.get(name, 0) + sum(x.numel() * x.element_size() for x in tensors)

    # Before the steps.

    def exchange_queries(self):
        q = self.query
        messages, given = [], {}
        for peer in self.peers():
            given[peer] = q.new_empty((q.shape[0], self.count, self.shards.tokens(peer), q.shape[3]))
            messages.append((False, peer, given[peer], "queries, before step 0"))
        for peer in self.peers():
            first, count, *_ = self.plan.heads[peer % self.shards.ulysses]
            part = q[:, first:first + count].contiguous()
            self.count_bytes("query_bytes", [part])
            messages.append((True, peer, part, "queries, before step 0"))
        started = self.wire.start(messages)
        given[self.rank] = q[:, self.heads:self.heads + self.count]
        if self.joint:
            given[JOINT] = self.joint.query[:, self.heads:self.heads + self.count]
        for rank, x in given.items():
            out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)  # what a query gets that sees no key
            lse = torch.full(x.shape[:3], -torch.inf, device=x.device)
            runs = 1 if rank == JOINT else len(self.shards.queries[rank])
            self.state[rank] = (x, out, lse, [False] * runs)
        self.wire.wait(started)

    def packed(self, key, value, heads):
        """A run of keys and values: (key, value, their bytes or None)."""
        key, value = key[:, heads], value[:, heads]
        if self.raw:
            return key.contiguous(), value.contiguous()
        return tuple(quantize(x, role, method=self.options["method"], threads=self.threads) for x, role in ((key, "key"), (value, "value")))

    def quantize_own(self):
        """Each run by itself, with a centre and scales of its own; for each slice of kv heads that a place of the group needs."""
        self.own, self.messages = {}, {}
        receivers = {peer % self.shards.ulysses for step in self.plan.steps for peer in step.sends}
        for place, (_, _, first, count) in enumerate(self.plan.heads):
            if first in self.own or (place != self.place and place not in receivers):
                continue
            self.own[first], at = [], 0
            for run in self.shards.keys[self.rank]:
                part = slice(at, at + run.count)
                self.own[first].append(self.packed(self.key[:, :, part], self.value[:, :, part], slice(first, first + count)))
                at += run.count
        if not self.raw:
            self.messages = {first: [_bytes(pickle.dumps(kv, 5)) for kv in runs] for first, runs in self.own.items()
                             if any(self.plan.heads[place][2] == first for place in receivers)}

    def exchange_sizes(self):
        """How long quantised runs are depends on the data. Who will receive some is told."""
        self.sizes = {}
        if self.raw:
            return
        device = self.wire.host(self.query.device)
        messages, what = [], "sizes of keys and values, before step 0"
        for step in self.plan.steps:
            for peer in step.receives:
                self.sizes[peer] = torch.empty(len(self.shards.keys[peer]), dtype=torch.int64, device=device)
                messages.append((False, peer, self.sizes[peer], what))
            for peer in step.sends:
                sizes = [x.numel() for x in self.messages[self.plan.heads[peer % self.shards.ulysses][2]]]
                messages.append((True, peer, torch.tensor(sizes, device=device), what))
        self.wire.wait(self.wire.start(messages))
        self.sizes = {peer: sizes.tolist() for peer, sizes in self.sizes.items()}

    # The steps.

    def post(self, number):
        """Starts the transfers of a step: ({(rank, run): tensors}, what to wait for before they are used)."""
        if number == len(self.plan.steps):
            return {}, []
        what, step = f"keys and values for step {number}", self.plan.steps[number]
        coming, messages = {}, []
        for peer, runs in step.receives.items():
            for run in runs:
                if self.raw:
                    shape = self.key.shape[0], self.kv_count, self.shards.keys[peer][run].count, self.key.shape[3]
                    coming[peer, run] = self.key.new_empty(shape), self.value.new_empty(shape)
                else:
                    coming[peer, run] = (torch.empty(self.sizes[peer][run], dtype=torch.uint8),)
                messages.extend((False, peer, x, what) for x in coming[peer, run])
        for peer, runs in step.sends.items():
            _, _, first, count = self.plan.heads[peer % self.shards.ulysses]
            for run in runs:
                tensors = self.own[first][run] if self.raw else (self.messages[first][run],)
                messages.extend((True, peer, x, what) for x in tensors)
                self.count_bytes("kv_bytes", tensors)
                if self.stats is not None:
                    numbers = 2 * self.key.shape[0] * count * self.shards.keys[self.rank][run].count * self.key.shape[3]
                    self.stats["kv_numbers"] = self.stats.get("kv_numbers", 0) + numbers
        started = self.wire.start(messages)
        if len(started) == len([x for x in messages if x[2].numel()]):
            pairs = list(zip(started, [x for x in messages if x[2].numel()]))
            self.sends.extend(work for work, message in pairs if message[0])
            started = [work for work, message in pairs if not message[0]]
        return coming, started

    def unpacked(self, tensors):
        return tensors if self.raw else pickle.loads(memoryview(tensors[0].numpy()))

    def attend(self, call):
        """Some runs of queries, one of keys: the only place that calls attention()."""
        query, out, lse, has_part = self.state[call.query_rank]
        queries = [self.plan.joint] if call.query_rank == JOINT else self.shards.queries[call.query_rank]
        first = sum(run.count for run in queries[:call.query_run])
        chosen = range(call.query_run, call.query_run + call.query_runs)
        part = slice(first, first + sum(queries[i].count for i in chosen))
        positions = {}
        if call.query_runs == 1:
            key_run = self.plan.joint if call.key_rank == JOINT else self.shards.keys[call.key_rank][call.key_run]
            positions = {"window": self.window, "query_positions": queries[call.query_run][2:], "key_positions": key_run[2:]}
        key, value = self.key_values[call.key_rank, call.key_run]
        x, options = query[:, :, part], {**self.options, **positions}
        direct = x.device.type == "cpu"  # a GPU's kernels write 16 bits
        if direct and not any(has_part[i] for i in chosen):
            _attention(x, key, value, out=out[:, :, part], lse=lse[:, :, part], return_lse=True, threads=self.threads, **options)
        else:
            new = torch.empty(x.shape, dtype=torch.float32 if direct else x.dtype, device=x.device)
            result = _attention(x, key, value, out=new, return_lse=True, threads=self.threads, **options)
            merge((out[:, :, part], lse[:, :, part]), result, out=out[:, :, part], lse=lse[:, :, part], threads=self.threads)
        for i in chosen:
            has_part[i] = True
        if self.stats is not None:
            self.stats["pairs"] = self.stats.get("pairs", 0) + call.pairs * x.shape[0] * self.count

    # After them.

    def finish(self):
        """Sends results to those whose queries they are, and takes those of this rank's own queries for the other heads."""
        out = torch.empty_like(self.query)
        lse = torch.empty(self.query.shape[:3], device=self.query.device) if self.return_lse else None
        messages, given, what = [], {}, "output, after the last step"
        for peer in self.peers():
            first, count, *_ = self.plan.heads[peer % self.shards.ulysses]
            shape = self.query.shape[0], count, *self.query.shape[2:]
            given[peer] = [self.query.new_empty(shape)] + ([torch.empty(shape[:3], device=out.device)] if self.return_lse else [])
            messages.extend((False, peer, x, what) for x in given[peer])
        for peer in self.peers():
            _, theirs, their_lse, _ = self.state[peer]
            tensors = [theirs.to(out.dtype)] + ([their_lse] if self.return_lse else [])
            self.count_bytes("output_bytes", tensors)
            messages.extend((True, peer, x, what) for x in tensors)
        started = self.wire.start(messages)
        given[self.rank] = self.state[self.rank][1:3]
        self.wire.wait(started)
        for rank, (theirs, *more) in given.items():
            first, count, *_ = self.plan.heads[rank % self.shards.ulysses]
            out[:, first:first + count] = theirs
            if self.return_lse:
                lse[:, first:first + count] = more[0]
        return (out, lse) if self.return_lse else out

    def finish_joint(self):
        """All ranks get the joint queries' results of all, and merge them in one order."""
        _, own, own_lse, _ = self.state[JOINT]
        size, what = len(self.wire.ranks), "joint output, after the last step"
        parts = [(own, own_lse) if rank == self.rank else (torch.empty_like(own), torch.empty_like(own_lse)) for rank in range(size)]
        others = [rank for rank in range(size) if rank != self.rank]
        self.wire.wait(self.wire.start([message for peer in others for i in range(2)
                                        for message in ((False, peer, parts[peer][i], what), (True, peer, parts[self.rank][i], what))]))
        out = torch.empty_like(self.joint.query)
        lse = torch.empty(out.shape[:3], device=out.device)
        for place, (first, count, *_) in enumerate(self.plan.heads):
            there = slice(first, first + count)
            merge(*parts[place::self.shards.ulysses], out=out[:, there], lse=lse[:, there], threads=self.threads)
        return (out, lse) if self.return_lse else out


def _travels_raw(query, method):
    recipe = methods()[method].recipe if isinstance(method, str) else method
    return query.device.type != "cpu" or (recipe.key.scaling == "none" and recipe.value.scaling == "none")


def _window(causal, window):
    left, right = (-1 if side is None else int(side) for side in (window or (-1, -1)))
    if causal and right > 0:
        raise ValueError(f"causal is True, but window lets a query see {right} later tokens; its right side must be 0 or None")
    return left, 0 if causal else right


def _check(tensors, shards, wire, joint, method):
    query, key, value = tensors
    if not isinstance(shards, Shards):
        raise TypeError(f"shards is {shards!r}; it must be what shard() or shard_sizes() gives")
    if shards.size != len(wire.ranks):
        raise ValueError(f"ring {shards.ring} x ulysses {shards.ulysses} is {shards.size} ranks, but there are {len(wire.ranks)}")
    if isinstance(method, str) and method not in methods():
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(methods())}, or a Recipe")
    named = [("query", query), ("key", key), ("value", value)]
    if joint:
        named += [(f"joint {name}", x) for name, x in zip(("query", "key", "value"), joint)]
    for i, (name, x) in enumerate(named):
        if not isinstance(x, torch.Tensor) or x.dim() != 4:
            raise ValueError(f"{name} must be a tensor with batch, heads, tokens and dim")
        if x.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(f"{name} requires a gradient, which attention over several ranks has none of: call it under torch.no_grad()")
        if x.shape[0] != query.shape[0] or x.shape[3] != query.shape[3] or x.device != query.device or x.dtype != query.dtype:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, {x.dtype}, on {x.device}; its batch, dim, type and device must be those of query: "
                             f"{tuple(query.shape)}, {query.dtype}, on {query.device}")
        like = query if i % 3 == 0 else key
        tokens = joint.query.shape[2] if i >= 3 else shards.tokens(wire.rank, keys=i > 0)
        if x.shape[1] != like.shape[1] or x.shape[2] != tokens:
            raise ValueError(f"{name} has {x.shape[1]} heads and {x.shape[2]} tokens; it must have {like.shape[1]} and, on this rank, {tokens}")


def _facts(query, key, shards, plan, options, window, joint, return_lse):
    layout = hashlib.sha256(repr((shards.queries, shards.keys)).encode()).hexdigest()[:16]
    return "\n".join(f"{name}: {value}" for name, value in {
        "chitu_attention": version(), "ranks": f"ring {shards.ring} x ulysses {shards.ulysses}", "heads": query.shape[1], "kv heads": key.shape[1],
        "batch": query.shape[0], "dim": query.shape[3], "layout": layout, "window": window, "type": query.dtype, "device": query.device.type,
        "lse": "asked for" if return_lse else "not asked for", **options, "joint tokens": plan.joint.count,
        "joint tokens behind": bool(joint and joint.rear)}.items())


def attention(query, key, value, shards, *, method="chitu", layout="bhsd", causal=False, window=None, scale=None, return_lse=False, joint=None,
              kernel=None, threads=0, group=None, ranks=None, timeout=300.0, check=True, stats=None):
    """softmax(scale * query . key^T) value of this rank's queries, over the keys of all ranks. All ranks of `group` call it.

    query, key, value: this rank's tokens, as `shards` says, in CPU memory or on its GPU. Nothing requires a gradient.
    shards: what shard() or shard_sizes() gives, the same on every rank.
    method, layout, causal, window, scale, return_lse, kernel, threads: as in chitu_attention.attention(); layout has all of b, h, s, d.
    joint: a Joint, in the same layout, the same on every rank. The answer is then a pair: this rank's, and that of the joint queries.
    group: of torch.distributed, whose ranks are those of `shards` in this order; the default group unless given. ranks: instead of all ranks
        of the group those with these global numbers.
    timeout: seconds that a rank waits for a message in CPU memory. Then it raises RuntimeError that names rank, peer and step; the group is
        of no use any more, and the program should end. For a GPU's messages the group's own timeout counts.
    check: ranks tell each other what they are about to do, and all raise the same ValueError if they do not fit. False leaves that out:
        with tensors on GPUs and a group without a CPU backend it waits for the GPU.
    stats: a dict to which bytes sent (kv_bytes for kv_numbers numbers, query_bytes, output_bytes) and pairs are added."""
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}; it must be more than 0 seconds")
    if sorted(layout) != sorted("bhsd"):
        raise ValueError(f"layout is {layout!r}; it must have each of b, h, s and d")
    ranks = list(dist.get_process_group_ranks(group or dist.group.WORLD)) if ranks is None else list(ranks)
    wire = _Transport(group, ranks, timeout)
    there, back = [layout.index(x) for x in "bhsd"], ["bhsd".index(x) for x in layout]
    tensors = [x.permute(there) for x in (query, key, value)]
    if joint:
        joint = Joint(*(x.permute(there) for x in joint[:3]), joint.rear)
    options, plan, error, facts = {"method": method, "scale": scale, "kernel": kernel}, None, None, ""
    try:
        _check(tensors, shards, wire, joint, method)
        window = _window(causal, window)
        tokens = joint.query.shape[2] if joint else 0
        plan = shards.plan(wire.rank, tensors[0].shape[1], tensors[1].shape[1], window, tokens, bool(joint and joint.rear))
        facts = _facts(*tensors[:2], shards, plan, options, window, joint, return_lse)
    except (ValueError, TypeError, NotImplementedError) as wrong:
        error = wrong
    if check:
        _agree(wire, facts, error, wire.host(query.device))
    elif error:
        raise error
    answer = _Execution(wire, shards, plan, tensors, joint, options, window, threads, return_lse, stats).run()

    def arranged(x):
        return (x[0].permute(back), x[1]) if return_lse else x.permute(back)

    return tuple(map(arranged, answer)) if joint else arranged(answer)


def explain(query, method="chitu"):
    """How keys and values of attention() would travel."""
    if not _travels_raw(query, method):
        return "keys and values travel quantised: each rank quantises its own, once"
    why = "the method does not quantise them" if query.device.type == "cpu" else "quantize() takes CPU memory only; each call quantises them"
    return f"keys and values travel as they came, in {query.element_size() * 8} bits a number: {why}"
