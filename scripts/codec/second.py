#!/usr/bin/env python3
"""A second implementation of the format in docs/codec.md, written from that page and docs/weights.md alone.

It decompresses, plainly and slowly, to show that the page says all there is to know. Names are those of the page.

    second.py MODEL.safetensors FILE.sharn > FILE

Needs numpy. A byte takes some milliseconds.
"""

import bisect
import hashlib
import json
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np

F = np.float32
ONE = F(1)
NEWLINE = 10
MULTIPLIER, MODULUS = 4093, 524287  # of n-grams
WORDS = 2**32 - 1
LONGS = 2**64 - 1
MARK, BLOCK, END = (bytes.fromhex(mark) for mark in ("9373 6861 726E 0D0A", "9342 4C4B", "9345 4E44"))


class Refused(Exception):
    pass


# Exact arithmetic. Arrays and scalars of float32 only: numpy rounds each operation by itself.


def total(x):
    """Σ in sixteen lanes, along the last axis. Lane l of accumulator a is value 16 a + l of sums."""
    length = x.shape[-1]
    whole = length - length % 64
    sums = np.zeros((*x.shape[:-1], 64), F)
    for i in range(0, whole, 64):
        sums += x[..., i : i + 64]
    for i in range(whole, length, 16):
        part = x[..., i : i + 16]
        sums[..., : part.shape[-1]] += part
    lanes = (sums[..., :16] + sums[..., 16:32]) + (sums[..., 32:48] + sums[..., 48:])
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def norm(x, weight, bias):
    d = F(len(x))
    off = x - total(x) / d
    v = ONE / np.sqrt(total(off * off) / d + F(1e-12))
    return (off * v) * weight + bias


def exp(x):
    x = np.minimum(np.maximum(x, F(-87.336540)), F(88.376260))
    n = np.rint(x * F(1.4426950408889634))
    r = n * F(-0.693359375) + x
    r = n * F(2.1219444e-4) + r
    p = F(1.9875691e-4)
    for c in (1.3981999e-3, 8.333452e-3, 4.1665796e-2, 0.16666665, 0.50000001):
        p = p * r + F(c)
    return np.ldexp((p * (r * r) + r) + ONE, n.astype(np.int32))


def sigmoid(x):
    return ONE / (ONE + exp(F(0) - x))


def tanh(x):
    e = exp(F(-2) * np.abs(x))
    return np.copysign((ONE - e) / (ONE + e), x)


def in_whole_numbers(w):
    """A matrix as whole numbers, its scales, and g, how many rows have one together."""
    rows, columns = w.shape
    g = 1
    while g * columns < 64 and rows % (2 * g) == 0:
        g *= 2
    groups = w.reshape(rows // g, -1)
    scale = np.abs(groups).max(axis=1) / F(127)
    scale = ((scale.view(np.uint32) + np.uint32(255)) & ~np.uint32(255)).view(F)
    whole = np.rint(groups / np.where(scale == 0, ONE, scale)[:, None])
    return whole.reshape(rows, columns).astype(np.int8), scale, g


def rounded(w):
    """A matrix as it is after it was in whole numbers."""
    whole, scale, g = in_whole_numbers(w)
    return whole.astype(F) * np.repeat(scale, g)[:, None]


def product(whole, scale, x):
    """(f32(Σ whole u) scale) t"""
    Q = F(min(32767, (2**31 - 1) // (127 * len(x))))
    m = np.abs(x).max()
    if not np.isfinite(m):
        return np.full(len(whole), np.nan, F)
    if m < F(2.0**-100):
        return np.zeros(len(whole), F)
    u = np.rint(x * (Q / m)).astype(np.float64)
    return ((whole @ u).astype(F) * scale) * (m / Q)  # the sum is exact: f64 holds whole numbers up to 2^53


class Matrix:
    """The parts of a product, one for each vector that it is of. `order` is that of the rows in the digest."""

    def __init__(self, digest, parts, bias, order):
        parts = [in_whole_numbers(w) for w in parts]
        self.parts = [(whole.astype(np.float64), np.repeat(scale, g)) for whole, scale, g in parts]
        self.bias = bias
        filled = lambda x: np.concatenate([x, np.zeros_like(x[:1])])[order]  # row -1 is of zeros
        groups = []
        for whole, _, _ in parts:
            whole = np.pad(whole, ((0, 0), (0, whole.shape[1] % 2)))
            groups.append(filled(whole).reshape(-1, 32, whole.shape[1] // 2, 2).swapaxes(1, 2))
        digest.update(np.stack(groups, axis=1).tobytes())
        digest.update(floats(*(filled(scale) for _, scale in self.parts), filled(bias)))

    def times(self, *vectors):
        products = [product(*part, x) for part, x in zip(self.parts, vectors)]
        return sum(products[1:], products[0]) + self.bias


def rows_in_order(rows):
    return [*range(rows)] + [-1] * (-rows % 32)


def rows_of_units(d, units, chunks):
    """The order of rows in groups of so many units' first chunk, second chunk and so on; -1 where there is no unit."""
    return [
        chunk * d + unit if unit < d else -1
        for first in range(0, d, units)
        for chunk in range(chunks)
        for unit in range(first, first + units)
    ]


def value_gate(weight, bias, vs):
    w, v = rounded(weight).astype(np.float64), sigmoid(vs).astype(np.float64)
    sums = bias.astype(np.float64)
    for column in range(len(v)):
        sums = sums + w[:, column] * v[column]
    c, f = np.split(sums.astype(F), 2)
    return sigmoid(f) * tanh(c)


def sizes(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def floats(*arrays):
    return b"".join(x.astype("<f4").tobytes() for x in arrays)


# The model. What decides the logits goes into the digest as it is built, in that order.


def read_tensors(path):
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    config = json.loads(header.pop("__metadata__")["sharnn.config"])
    tensors = {}
    for name, x in header.items():
        begin, end = x["data_offsets"]
        values = np.frombuffer(data[start + begin : start + end], {"F32": "<f4", "I8": "i1"}[x["dtype"]])
        tensors[name] = values.reshape(x["shape"])
    for name in [name for name, x in tensors.items() if x.dtype == np.int8]:
        scale, x = tensors.pop(name + "_scale"), tensors[name]
        tensors[name] = (x.astype(F).reshape(len(scale), -1) * scale[:, None]).reshape(x.shape)
    return config, tensors


class Block:
    def __init__(self, digest, get, d, chunks, heads):
        pair = lambda name: (get(name + ".weight"), get(name + ".bias"))
        self.chunks, self.heads = chunks, heads if get("attn.qs") is not None else 0
        self.start, self.ff, self.xff = pair("lnstart"), pair("lnff"), pair("lnxff")
        digest.update(sizes(self.chunks, self.heads) + floats(*self.start, *self.ff, *self.xff))
        bias = get("rnn.bias_ih_l0") + get("rnn.bias_hh_l0")
        self.lstm = Matrix(digest, [get("rnn.weight_ih_l0"), get("rnn.weight_hh_l0")], bias, rows_of_units(d, 8, 4))
        weight, bias = pair("ff.linear1")
        self.boom = Matrix(digest, [weight], bias, rows_of_units(d, 32, chunks))
        if self.heads:
            weight, bias = pair("attn.q")
            self.q = Matrix(digest, [weight], bias, rows_in_order(d))
            self.mid, self.mem = pair("lnmid"), pair("lnmem")
            factor = sigmoid(get("attn.qs").reshape(d)) * sigmoid(get("attn.ks").reshape(d))
            self.qln = [x * (factor * (ONE / np.sqrt(F(d // heads)))) for x in pair("attn.qln")]
            self.gate = get("attn.vs").reshape(d)
            if get("attn.vq.l1.weight") is not None:
                self.gate = value_gate(*pair("attn.vq.l1"), self.gate)
            digest.update(floats(*self.mid, *self.mem, *self.qln, self.gate))


class Model:
    def __init__(self, path):
        config, tensors = read_tensors(path)
        self.d, self.memory, vocabulary = config["d_model"], config["mem_len"], config["vocab_size"]
        if vocabulary != 256:
            raise Refused("the model is not one of bytes")
        digest = hashlib.sha256(sizes(self.d, self.memory, 3, vocabulary, config["n_layers"]))
        embedding = tensors["encoder.weight"]
        self.embedding = rounded(embedding)
        digest.update(floats(self.embedding))
        decoder = tensors.get("decoder.weight", embedding)
        self.decoder = Matrix(digest, [decoder], tensors["decoder.bias"], rows_in_order(vocabulary))
        chunks, heads = config["d_ff"] // self.d, config["n_heads"]
        self.blocks = [
            Block(digest, lambda name: tensors.get(f"blocks.{i}.{name}"), self.d, chunks, heads)
            for i in range(config["n_layers"])
        ]
        self.ngrams, self.maps = config.get("ngrams"), {}
        if self.ngrams:
            self.build_ngrams(digest, tensors)
        self.digest = digest.digest()

    def build_ngrams(self, digest, tensors):
        digest.update(sizes(*self.ngrams["orders"], self.ngrams["rows"], self.ngrams["width"], MULTIPLIER, MODULUS))
        self.table = rounded(tensors["ngrams.table"])
        whole, scale, _ = in_whole_numbers(tensors["ngrams.table"])
        digest.update(whole.tobytes() + floats(scale))
        for end in ("input", "output"):
            weight = tensors.get(f"ngrams.{end}")
            digest.update(bytes([weight is not None]))
            if weight is not None:
                self.maps[end] = Matrix(digest, [weight], np.zeros(self.d, F), rows_in_order(self.d))


def read_model(path):
    try:
        return Model(path)
    except (struct.error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Refused(f"{path} is no model with a configuration and values in F32 or I8 ({error!r})") from None


class Stream:
    """A model with a state."""

    def __init__(self, model):
        self.model, self.tokens = model, []
        self.states = [(np.zeros(model.d, F), np.zeros(model.d, F)) for _ in model.blocks]
        self.rows = [np.zeros((max(model.memory, 1), model.d), F) for _ in model.blocks]

    def step(self, token):
        """Reads a token and gives the logits of the next one."""
        model = self.model
        self.tokens.append(token)
        ngrams = self.ngram_rows() if model.ngrams else None
        x = model.embedding[token]
        if "input" in model.maps:
            x = x + model.maps["input"].times(ngrams)
        for i, block in enumerate(model.blocks):
            y = self.lstm(i, norm(x, *block.start))
            if block.heads:
                y = self.attend(i, y)
            x = boom(block, y)
        if "output" in model.maps:
            x = x + model.maps["output"].times(ngrams)
        return model.decoder.times(x)

    def ngram_rows(self):
        rows, out = self.model.ngrams["rows"], []
        for number, order in enumerate(self.model.ngrams["orders"]):
            h = 0
            for token in self.tokens[-order:]:
                h = (MULTIPLIER * h + token + 1) % MODULUS
            out.append(self.model.table[number * rows + h % rows])
        return np.concatenate(out)

    def lstm(self, i, x):
        h, c = self.states[i]
        gate_i, gate_f, gate_g, gate_o = np.split(self.model.blocks[i].lstm.times(x, h), 4)
        c = sigmoid(gate_i) * tanh(gate_g) + sigmoid(gate_f) * c
        h = sigmoid(gate_o) * tanh(c)
        self.states[i] = h, c
        return h

    def attend(self, i, y):
        block, rows, t = self.model.blocks[i], self.rows[i], len(self.tokens) - 1
        rows[t % len(rows)] = norm(y, *block.mem)
        rows = rows[: t + 1]
        residual = norm(y, *block.mid)
        query = norm(block.q.times(residual), *block.qln)
        mixes = [attention(q, r) for q, r in zip(np.split(query, block.heads), np.split(rows, block.heads, axis=1))]
        return np.concatenate(mixes) * block.gate + residual


def attention(query, rows):
    """What a head attends to: the mix of its rows over their total."""
    parts = []
    for first in range(0, len(rows), 32):
        part = rows[first : first + 32]
        a = total(query * part)
        w = exp(a - a.max())
        # An accumulation adds row after row.
        parts.append((a.max(), total(w), np.add.accumulate(part * w[:, None], axis=0)[-1]))
    largest = max(m for m, _, _ in parts)
    whole, out = F(0), np.zeros(len(query), F)
    for m, part_total, mix in parts:
        factor = exp(m - largest)
        whole = factor * part_total + whole
        out = mix * factor + out
    return out / whole


def boom(block, y):
    out = norm(y, *block.ff)
    chunks = block.boom.times(norm(y, *block.xff))[: block.chunks * len(y)]
    for z in np.split(chunks, block.chunks):
        out = z * sigmoid(F(1.702) * z) + out
    return out


def weights_of(logits):
    """The whole numbers that stand for the probabilities of the bytes."""
    x = np.fmax((logits - logits.max()) * F(1.4426950408889634), F(-40))  # NaN gives -40
    n = np.rint(x)
    y = (x - n) * F(0.6931471805599453)
    e = F(1 / 120)
    for c in (1 / 24, 1 / 6, 1 / 2, 1, 1):
        e = F(c) + y * e
    return np.maximum(1, np.rint(np.ldexp(e, n.astype(np.int32) + 22)).astype(np.int64))


def tree_of(weights):
    """For each node the sum of the weights of the bytes that begin with its bits; the bytes are nodes 256 to 511."""
    level, levels = weights, [weights]
    while len(level) > 1:
        level = level[0::2] + level[1::2]
        levels.append(level)
    return [0] + np.concatenate(levels[::-1]).tolist()


# The mixing.


def held(p):
    return min(max(p, 1), 65535)


def clamped(x):
    return min(max(x, -2839), 2839)


def logistic_tables():
    """squash of x at place x + 2839, and stretch of p at place p."""
    one = t = s = 2**62
    for n in range(1, 16):
        t //= 512 * n
        s += -t if n % 2 else t
    S, P = {0: 2**61}, one
    for k in range(1, 5679):
        P = P * s // one
        S[k] = 2**124 // (one + P)
        S[-k] = one - S[k]
    squash = [held((S[2 * x] + 2**45) // 2**46) for x in range(-2839, 2840)]
    odd = [S[k] for k in range(-5677, 5678, 2)]
    near = lambda v: bisect.bisect_right(odd, v) - 2839
    stretch = [near(2**46 * p) for p in range(4096)]
    stretch += [near(2**49 * (2 * (p // 16) + 1)) for p in range(4096, 61441)]
    stretch += [-stretch[65536 - p] for p in range(61441, 65536)]
    return squash, stretch


SQUASH, STRETCH = logistic_tables()


def squash(x):
    return SQUASH[clamped(x) + 2839]


STEPS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 40)
BESIDE = (40, 40, 12, 8, 6, 5)


def counts_after(counts, bit):
    came, other = counts[bit], counts[1 - bit]
    down = lambda count: STEPS[STEPS.index(count) - 1]
    too_many = lambda count, beside: count > (BESIDE[beside] if beside < len(BESIDE) else 4)
    came = came if came == 40 else STEPS[STEPS.index(came) + 1]
    if other > 2:
        other = other - 1 if other <= 4 else other // 2 + 1 if other <= 8 else 6
    while too_many(came, other) or too_many(other, came):
        came, other = (down(came), other) if too_many(came, other) else (came, down(other))
    return (other, came, bit) if bit else (came, other, bit)


def counts_tables():
    """All counts (zeros, ones, last), and the number of those after a 0 and after a 1 of each."""
    counts, after = [(0, 0, 0)], []
    for c in counts:
        following = [counts_after(c, bit) for bit in (0, 1)]
        counts += [f for f in following if f not in counts]
        after.append([counts.index(f) for f in following])
    return counts, after


COUNTS, AFTER = counts_tables()
SEEN = [zeros + ones for zeros, ones, _ in COUNTS]
MEANT = [65536 * (10 * ones + 4) // (10 * (zeros + ones) + 8) for zeros, ones, _ in COUNTS]


class Learned:
    """Learned probabilities."""

    def __init__(self, first, most):
        self.P = [2**6 * held(p) for p in first]
        self.n = [0] * len(first)
        self.most = most

    def p(self, i):
        return held(self.P[i] // 2**6)

    def learn(self, i, happened):
        T = 2**22 - 1 if happened else 0
        n = self.n[i]
        self.P[i] += (T - self.P[i]) * (131072 // (2 * n + 3)) // 2**16
        self.n[i] = min(n + 1, self.most)


class Lane:
    """What a lane knows."""

    def __init__(self, array, table, number, size):
        self.array, self.table = array, table
        self.ring, self.size = number * size, size
        self.read_bytes = 0
        self.word = self.word_before = 0
        self.line = self.line_before = 0
        self.match, self.length, self.doubt = 0, 0, 0

    def back(self, k):
        if k > min(self.read_bytes, self.size):
            return 0
        return self.array[self.ring + (self.read_bytes - k) % self.size]

    def last(self, count):
        """The number of the newest bytes, the newest lowest."""
        return sum(self.back(k) << 8 * (k - 1) for k in range(1, count + 1))

    def read(self, byte):
        self.follow_match(byte)
        self.array[self.ring + self.read_bytes % self.size] = byte
        self.read_bytes += 1
        lower = byte | 32 if 65 <= byte <= 90 else byte
        if 97 <= lower <= 122 or byte >= 128:
            self.word = (self.word + lower + 1) * 0x2F0B4C47 & WORDS
        elif self.word:
            self.word_before, self.word = self.word, 0
        if byte == NEWLINE:
            self.line_before, self.line = self.line, self.read_bytes
        if self.read_bytes >= 6:
            self.find_match()

    def follow_match(self, byte):
        if self.length:
            if self.array[self.match] == byte:
                self.length = min(self.length + 1, 65536)
                self.match = self.before(self.match, -1)
            else:
                self.length, self.doubt = 0, 8
        self.doubt = max(self.doubt - 1, 0)

    def before(self, place, k):
        """The place k before a place, in its ring."""
        ring = place - place % self.size
        return ring + (place - ring - k) % self.size

    def find_match(self):
        bits = len(self.table).bit_length() - 1
        entry = ((self.last(6) + 1) * 0x9E3779B97F4A7C15 & LONGS) >> (64 - bits)
        now = self.ring + self.read_bytes % self.size
        found, self.table[entry] = self.table[entry] - 1, now + 1
        if found in (-1, now) or self.length:
            return
        length, most = 0, min(32, self.read_bytes, self.size - 1)
        while length < most and self.array[self.before(found, length + 1)] == self.back(length + 1):
            length += 1
        if length >= 6:
            self.match, self.length = found, length

    def contexts(self):
        """Contexts of the next byte."""
        above = 0
        if self.line_before + (self.read_bytes - self.line) < self.line:
            above = self.back(self.line - self.line_before)
        a = 0xCBF29CE484222325
        for k in range(1, 13):
            byte = self.back(k)
            a = (a ^ (48 if 48 <= byte <= 57 else byte)) * 0x100000001B3 & LONGS
        return [
            *(hashed(self.last(count), count) for count in (1, 2, 3, 5)),
            hashed(self.word, 7),
            hashed(self.word | self.word_before << 20, 8),
            hashed(above << 16 | self.last(2), 9),
            hashed(a >> 8, 10),
        ]


def hashed(v, kind):
    m = (v ^ kind << 56) * 0x9E3779B97F4A7C15 & LONGS
    return ((m ^ m >> 29) * 0xBF58476D1CE4E5B9 & LONGS) >> 32


def of_last_bits(contexts, node):
    """The contexts of the last four bits, node being that after the first four."""
    added = [h + node * 0x9E3779B1 & WORDS for h in contexts]
    return [(h ^ h >> 15) * 0x85EBCA6B & WORDS for h in added]


class Buckets:
    """Lines of four buckets of sixteen bytes: a mark, and the numbers of counts at places 1 to 15."""

    def __init__(self, lines):
        self.lines = lines
        self.bytes = bytearray(64 * lines)

    def find(self, h):
        """Where its bucket begins, or None; where all four of its line do; its mark."""
        line = 64 * (h * self.lines >> 32)
        four = range(line, line + 64, 16)
        mark = max(1, (h * 0x9E3779B1 & WORDS) >> 24)
        return next((b for b in four if self.bytes[b] == mark), None), four, mark

    def learn(self, h, bits):
        """Four bits came."""
        bucket, four, mark = self.find(h)
        if bucket is None:
            bucket = min(four, key=lambda b: SEEN[self.bytes[b + 1]])
            self.bytes[bucket : bucket + 16] = bytes([mark]) + bytes(15)
        place = 1
        for bit in bits:
            self.bytes[bucket + place] = AFTER[self.bytes[bucket + place]][bit]
            place = 2 * place + bit


def power_of_two_up_to(n):
    return 1 << n.bit_length() - 1


UNSURE = (1482910, 2097152, 2965820, 4194304, 5931641, 8388608, 11863283)


class Mixer:
    def __init__(self, memory, lanes):
        room = memory - 2**19
        size = power_of_two_up_to(room // 8 // lanes)
        array, table = bytearray(lanes * size), [0] * power_of_two_up_to(room // 32)
        self.lanes = [Lane(array, table, number, size) for number in range(lanes)]
        self.buckets = Buckets(3 * (room // 4) // 64)
        self.alone = [0] * 256  # numbers of counts without a context, of nodes
        self.meanings = [Learned(MEANT, 255) for _ in range(9)]  # the first one without a context
        self.matches = Learned([65536 * (z // 2 + 1) // (z // 2 + 2) for z in range(64)], 1023)
        self.weights = np.full((256 + 72 + 512, 20), 9825)  # the three sets, one below the other
        self.weights[:, 0], self.weights[:, 1] = 0, 39300
        self.last_weights = np.full((256, 3), 21845)
        self.curves = [[squash(128 * k - 2839) for k in range(46)] for _ in range(256 + 4096)]
        self.learned = 0

    def begin(self, lane, weights_sum):
        """A byte of a lane."""
        self.lane = self.lanes[lane]
        self.unsure = bisect.bisect_right(UNSURE, weights_sum // 4)
        self.newest = self.lane.back(1)
        self.contexts = self.lane.contexts()
        self.decisions = []

    def contexts_of(self, node):
        """The contexts of a node, and its place in their buckets."""
        if node < 16:
            return self.contexts, node
        first = 1 << node.bit_length() - 5
        return of_last_bits(self.contexts, node // first), first + node % first

    def inputs(self, node, model):
        """The 20 numbers, what counts meant, the match's (number, bit), and how many contexts are known."""
        numbers = [256, STRETCH[model], STRETCH[self.meanings[0].p(self.alone[node])], 0] + [0] * 16
        meant = [(0, self.alone[node])]
        match = self.match_of(node)
        if match:
            z, bit = match
            numbers[3] = STRETCH[self.matches.p(z)] if bit else -STRETCH[self.matches.p(z)]
        contexts, place = self.contexts_of(node)
        for i, h in enumerate(contexts, 1):
            bucket = self.buckets.find(h)[0]
            counts = self.buckets.bytes[bucket + place] if bucket is not None else 0
            if counts:
                p = self.meanings[i].p(counts)
                numbers[2 + 2 * i : 4 + 2 * i] = STRETCH[p], (p - 32768) // 64
                meant.append((i, counts))
        return np.array(numbers), meant, match, sum(1 <= i <= 7 for i, _ in meant)

    def match_of(self, node):
        lane, bits = self.lane, node.bit_length() - 1
        if not lane.length:
            return None
        byte = 256 | lane.array[lane.match]
        if byte >> (8 - bits) != node:
            return None
        return 2 * min(lane.length, 31) + (lane.doubt > 0), byte >> (7 - bits) & 1

    def predict(self, node, model):
        """The probability of a decision."""
        inputs, meant, match, known = self.inputs(node, model)
        matched = 1 + match[0] // 8 if match else 0
        depth = node.bit_length() - 1
        sets = [node, 256 + 8 * matched + known, 328 + 8 * (8 * self.unsure + depth) + known]
        mixtures = [clamped(x) for x in (((self.weights[sets] // 16) @ inputs) // 4096).tolist()]
        mixed = clamped(int((self.last_weights[node] // 16) @ mixtures) // 4096)
        k, a = divmod(mixed + 2839, 128)
        number = ((256 * self.newest + node) * 0x9E3779B1 & WORDS) // 2**8 % 4096
        curves = [self.curves[node], self.curves[256 + number]]
        said = [((128 - a) * curve[k] + a * curve[k + 1]) // 128 for curve in curves]
        self.decisions.append(SimpleNamespace(
            node=node, inputs=inputs, meant=meant, match=match, sets=sets, mixtures=mixtures, mixed=mixed,
            curves=curves, knot=k + (a >= 64),
        ))
        return held((2 * squash(mixed) + said[0] + said[1]) // 4)

    def learn(self, byte):
        rate = 6 + 96000 // (4000 + min(self.learned, 2**20))
        for made in self.decisions:
            bit = byte >> (8 - made.node.bit_length()) & 1
            self.learn_decision(made, bit, rate)
        bits = [byte >> i & 1 for i in range(7, -1, -1)]
        for h in self.contexts:
            self.buckets.learn(h, bits[:4])
        for h in of_last_bits(self.contexts, 16 + byte // 16):
            self.buckets.learn(h, bits[4:])
        self.lane.read(byte)
        self.learned += 1

    def learn_decision(self, made, bit, rate):
        errors = np.array([(65536 * bit - squash(x)) * rate // 64 for x in made.mixtures])
        self.weights[made.sets] = stepped(self.weights[made.sets], made.inputs, errors[:, None])
        error = (65536 * bit - squash(made.mixed)) * 2 // 64
        self.last_weights[made.node] = stepped(self.last_weights[made.node], np.array(made.mixtures), error)
        for curve in made.curves:
            curve[made.knot] += ((65535 if bit else 1) - curve[made.knot]) // 64
        for context, counts in made.meant:
            self.meanings[context].learn(counts, bit)
        if made.match:
            z, expected = made.match
            self.matches.learn(z, bit == expected)
        self.alone[made.node] = AFTER[self.alone[made.node]][bit]


def stepped(weights, inputs, error):
    return np.clip(weights + (inputs * error + 2048) // 4096, -393215, 393215)


# The code and the container.


class Coder:
    def __init__(self, code):
        self.code = code
        self.value = int.from_bytes(code[:4].ljust(4, b"\0"), "big")  # less low
        self.at = 4
        self.range = 2**32 - 1

    def decide(self, p):
        bound = (self.range >> 16) * p
        bit = int(self.value < bound)
        if bit:
            self.range = bound
        else:
            self.value -= bound
            self.range -= bound
        while self.range < 2**24:
            following = self.code[self.at] if self.at < len(self.code) else 0
            self.value = self.value << 8 | following
            self.range <<= 8
            self.at += 1
        return bit


def decode_byte(coder, logits, mixer, lane):
    tree = tree_of(weights_of(logits))
    if mixer:
        mixer.begin(lane, tree[1])
    node = 1
    while node < 256:
        p = held(2**16 * tree[2 * node + 1] // tree[node])
        node = 2 * node + coder.decide(mixer.predict(node, p) if mixer else p)
    if mixer:
        mixer.learn(node - 256)
    return node - 256


def decode(model, memory, lanes, code, length):
    coder = Coder(code)
    mixer = Mixer(memory, lanes) if memory else None
    streams = [Stream(model) for _ in range(lanes)]
    newest = [NEWLINE] * lanes
    text = bytearray(length)
    rows = -(-length // lanes)
    for i in range(rows):
        for lane, stream in enumerate(streams):
            at = lane * rows + i
            if at < length:
                text[at] = newest[lane] = decode_byte(coder, stream.step(newest[lane]), mixer, lane)
    return bytes(text)


class Reader:
    """The parts of a file, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length, what):
        part = self.data[self.at : self.at + length]
        if len(part) < length:
            raise Refused(f"{what} is cut short")
        self.at += length
        return part

    def summed(self, layout, what):
        """Fields of a part that ends with its sum."""
        part = self.take(struct.calcsize("<" + layout) + 4, what)
        if zlib.crc32(part[:-4]) != int.from_bytes(part[-4:], "little"):
            raise Refused(f"{what} is damaged: its sum is another")
        return struct.unpack("<" + layout, part[:-4])


def read_header(reader, model):
    if reader.data[:8] != MARK:
        raise Refused("this is no .sharn file")
    if reader.data[8:10] != b"\1\0":
        raise Refused("the file is of another version than 1")
    zeros, most, memory, digest = reader.summed("10x6sII16s", "the header")
    if any(zeros) or not 1024 <= most <= 2**26 or memory and not 2**20 <= memory <= 2**26:
        raise Refused("the header says what no header of version 1 says")
    if digest != model.digest[:16]:
        raise Refused("another model compressed this file")
    return most, memory


def read_block(reader, number, most, memory, model):
    what = f"block {number}"
    own, stored, lanes, length, code_length, text_sum, code_sum = reader.summed("4xIHHIIII", what)
    fits = code_length == length if stored else code_length <= length
    if own != number or stored > 1 or not 1 <= lanes <= 256 or not 1 <= length <= most or not fits:
        raise Refused(f"{what} is damaged: its head says what no head says")
    code = reader.take(code_length, what)
    if zlib.crc32(code) != code_sum:
        raise Refused(f"{what} is damaged: its code has another sum")
    text = code if stored else decode(model, memory, lanes, code, length)
    if zlib.crc32(text) != text_sum:
        raise Refused(f"{what} is damaged: its text has another sum")
    return text


def decompress(data, model, out):
    reader = Reader(data)
    most, memory = read_header(reader, model)
    blocks = written = 0
    while data[reader.at : reader.at + 4] == BLOCK:
        written += out.write(read_block(reader, blocks, most, memory, model))
        blocks += 1
    if reader.summed("4sIQ", "the end") != (END, blocks, written) or reader.at < len(data):
        raise Refused("the end is damaged")


def main():
    if len(sys.argv) != 3:
        sys.exit("second.py MODEL.safetensors FILE.sharn > FILE")
    try:
        with open(sys.argv[2], "rb") as file:
            data = file.read()
        decompress(data, read_model(sys.argv[1]), sys.stdout.buffer)
    except (OSError, Refused) as error:
        sys.exit(f"second.py: {error}")


if __name__ == "__main__":
    main()
