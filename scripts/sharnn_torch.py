#!/usr/bin/env python3
"""An independent PyTorch statement of SHA-RNN: the yardstick that the Rust implementation is measured against.

  check   FIXTURE.safetensors ...   compare this file with the golden fixtures (see ../fixtures/README.md)
  bench   --size S|M|L --mode train|forward|decode --dtype f32|bf16|fp16 [--device cuda] [--threads N]
  train   --data enwik8 --size S --steps N [...]   the paper's optimizer on real bytes, in segments of one length, one line per log interval

Everything is time-major: ids [seq_len, batch], activations [seq_len, batch, d_model]. Sizes are those of `sharnn bench --size`.

Install torch, numpy and safetensors from PyPI. For a fair comparison on a CPU set OMP_WAIT_POLICY=PASSIVE and GOMP_SPINCOUNT=0, run both
programs in turn on an idle machine with the same number of threads, and compare medians.
"""
import argparse, json, math, resource, statistics, time
import torch
import torch.nn as nn
import torch.nn.functional as F

LN_EPS = 1e-12
SIZES = {"XS": (128, 512, 4), "S": (256, 1024, 4), "M": (512, 2048, 4), "L": (1024, 4096, 4)}


class Norm(nn.Module):
    """Layer norm with weight 1, bias 0 at the start. Runs in f32, as the original's fused kernel does."""

    def __init__(self, d):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))

    def forward(self, x):
        return F.layer_norm(x.float(), x.shape[-1:], self.weight, self.bias, LN_EPS)


class ValueGate(nn.Module):
    """sigmoid(f) * tanh(c), with [c, f] one linear map of the static gate vector."""

    def __init__(self, d):
        super().__init__()
        self.l1 = nn.Linear(d, 2 * d)

    def forward(self, z):
        c, f = self.l1(z).chunk(2, dim=-1)
        return torch.sigmoid(f) * torch.tanh(c)


class Attention(nn.Module):
    sdpa = False  # let PyTorch's own fused attention do it

    def __init__(self, d, heads, p):
        super().__init__()
        self.heads, self.p = heads, p
        self.qs, self.ks, self.vs = (nn.Parameter(torch.zeros(1, 1, d)) for _ in range(3))
        self.q, self.qln, self.vq = nn.Linear(d, d), Norm(d), ValueGate(d)

    def forward(self, h, keys):
        t, b, d = h.shape
        s, dh = keys.shape[0], d // self.heads
        q = torch.sigmoid(self.qs) * self.qln(self.q(h))
        k = torch.sigmoid(self.ks) * keys
        v = self.vq(torch.sigmoid(self.vs)) * keys
        q, v = F.dropout(q, self.p, self.training), F.dropout(v, self.p, self.training)
        q, k, v = (x.view(-1, b, self.heads, dh).permute(1, 2, 0, 3) for x in (q, k, v))  # [b, heads, len, dh]
        # Query i stands at key position s - t + i: it sees all memory and the current segment up to itself.
        hidden = torch.ones(t, s, dtype=torch.bool, device=h.device).triu(s - t + 1)
        if self.sdpa:
            out = F.scaled_dot_product_attention(q, k, v, ~hidden, self.p if self.training else 0.0)
            return out.permute(2, 0, 1, 3).reshape(t, b, d)
        scores = q @ k.transpose(-1, -2) / math.sqrt(dh)
        weights = F.dropout(scores.masked_fill(hidden, -math.inf).softmax(-1), self.p, self.training)
        return (weights @ v).permute(2, 0, 1, 3).reshape(t, b, d)


class Boom(nn.Module):
    def __init__(self, d, d_ff, p):
        super().__init__()
        self.linear1, self.p = nn.Linear(d, d_ff), p

    def forward(self, x):
        d = x.shape[-1]
        y = self.linear1(x)
        y = F.dropout(y * torch.sigmoid(1.702 * y), self.p, self.training)
        n = y.shape[-1] // d
        return y[..., : n * d].view(*y.shape[:-1], n, d).sum(-2)


class Block(nn.Module):
    def __init__(self, d, d_ff, heads, p, attend):
        super().__init__()
        self.p = p
        self.rnn, self.ff = nn.LSTM(d, d), Boom(d, d_ff, p)
        self.attn = Attention(d, heads, p) if attend else None
        self.lnstart, self.lnff, self.lnxff = Norm(d), Norm(d), Norm(d)
        if attend:
            self.lnmid, self.lnmem = Norm(d), Norm(d)

    def forward(self, h, state, mem, mem_len):
        drop = lambda x: F.dropout(x, self.p, self.training)
        x, state = self.rnn(self.lnstart(h), state)
        h, new_mem = drop(x), None
        if self.attn is not None:
            mh, h = self.lnmem(h), self.lnmid(h)
            keys = mh if mem is None else torch.cat([mem.to(mh.dtype), mh])
            new_mem = keys[max(0, keys.shape[0] - mem_len):].detach()
            h = drop(self.attn(h, keys)) + h
        return self.lnff(h) + drop(self.ff(self.lnxff(h))), tuple(s.detach() for s in state), new_mem


class ShaRnn(nn.Module):
    def __init__(self, vocab, d, d_ff, layers, attend="one", heads=1, mem_len=5000, dropout=0.0, tied=True):
        super().__init__()
        self.mem_len, self.p = mem_len, dropout
        self.encoder, self.decoder = nn.Embedding(vocab, d), nn.Linear(d, vocab)
        has = lambda i: attend == "all" or (attend == "one" and i == layers - 2)
        self.blocks = nn.ModuleList(Block(d, d_ff, heads, dropout, has(i)) for i in range(layers))
        std = 0.1 / math.sqrt(d)
        for m in self.modules():  # the LSTM keeps U(-1/sqrt(d), 1/sqrt(d)); norms keep 1 and 0
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, 0.0, std)
            if isinstance(m, nn.Linear):
                nn.init.zeros_(m.bias)
        if tied:
            self.decoder.weight = self.encoder.weight

    def forward(self, ids, state=None):
        t, n = ids.shape[0], len(self.blocks)
        hidden, mems = state if state is not None else ([None] * n, [None] * n)
        h = F.dropout(self.encoder(ids), self.p, self.training)
        new_h, new_m = [], []
        for block, hid, mem in zip(self.blocks, hidden, mems):
            mem = None if mem is None else mem[max(0, mem.shape[0] - max(0, self.mem_len - t)):]
            h, hid, mem = block(h, hid, mem, self.mem_len)
            new_h.append(hid), new_m.append(mem)
        h = F.dropout(h, self.p, self.training)
        return h, self.decoder(h), (new_h, new_m)


class MinTrustLamb(torch.optim.Optimizer):
    """LAMB with the trust ratio floored, no bias correction, weight norm clamped to 10."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=1.2e-6, min_trust=0.25):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, wd=weight_decay, min_trust=min_trust))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            (b1, b2), lr = g["betas"], g["lr"]
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["m"], s["v"] = torch.zeros_like(p), torch.zeros_like(p)
                s["m"].mul_(b1).add_(p.grad, alpha=1 - b1)
                s["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                u = s["m"] / (s["v"].sqrt() + g["eps"])
                if g["wd"]:
                    u = u.add(p, alpha=g["wd"])
                wn, un = p.norm().clamp(0, 10), u.norm()
                r = torch.where((wn == 0) | (un == 0), torch.ones_like(wn), wn / un)
                if g["min_trust"] is not None:
                    r = r.clamp(min=g["min_trust"])
                p.add_(u * (-lr * r))


def load(model, tensors):
    own = dict(model.named_parameters())
    own["decoder.weight"] = model.decoder.weight
    for name, p in own.items():
        p.data.copy_(tensors[name])


def check(args):
    from safetensors import safe_open
    worst_all = 0.0
    for path in args.fixtures:
        f = safe_open(path, "pt")
        cfg = {k: json.loads(v) for k, v in f.metadata().items()}
        get = lambda prefix: {k[len(prefix):]: f.get_tensor(k) for k in f.keys() if k.startswith(prefix)}
        m = ShaRnn(cfg["vocab"], cfg["emsize"], cfg["nhid"], cfg["nlayers"], cfg["attn"], cfg["heads"],
                   cfg["num_max_positions"], 0.0, cfg["tied"])
        load(m, get("param."))
        state, worst, what = None, 0.0, ""

        def near(name, got, want):
            nonlocal worst, what
            e = ((got - want).norm() / want.norm().clamp(min=1e-12)).item()
            if e > worst:
                worst, what = e, name

        for s in (1, 2, 3):
            if state is not None:
                hid, mem = state
                state = (hid if cfg["carry_hidden"] else [None] * len(hid), mem if cfg["carry_mem"] else [None] * len(mem))
            x, y = f.get_tensor(f"seg{s}.input"), f.get_tensor(f"seg{s}.target")
            m.zero_grad()
            h, logits, state = m(x, state)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
            loss.backward()
            near(f"seg{s}.h", h, f.get_tensor(f"seg{s}.h"))
            near(f"seg{s}.logits", logits, f.get_tensor(f"seg{s}.logits"))
            near(f"seg{s}.loss", loss.reshape(1), f.get_tensor(f"seg{s}.loss"))
            grads, own = get(f"seg{s}.grad."), dict(m.named_parameters())
            for k, want in grads.items():
                near(f"seg{s}.grad.{k}", own[k].grad, want)
            for k in f.keys():
                if k.startswith(f"seg{s}.mem."):
                    near(k, state[1][int(k.split(".")[2])], f.get_tensor(k))
        worst_all = max(worst_all, worst)
        print(f"{path}: worst relative error {worst:.2e} at {what}")
    assert worst_all < 1e-3, "the reference disagrees with the fixtures"


def pick(args):
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    d, d_ff, layers = SIZES[args.size]
    Attention.sdpa = args.sdpa
    return ShaRnn(256, d, d_ff, layers, args.attend, 1, args.mem_len, args.dropout).to(args.device)


def sync(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def amp(args):
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(args.device.split(":")[0], dtype=kinds.get(args.dtype, torch.bfloat16), enabled=args.dtype != "f32")


def train_step(m, opt, scaler, args, x, y, state, clip=0.25):
    opt.zero_grad(set_to_none=True)
    with amp(args):
        _, logits, state = m(x, state)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
    scaler.scale(loss).backward()
    scaler.unscale_(opt)
    torch.nn.utils.clip_grad_norm_(m.parameters(), clip)
    scaler.step(opt), scaler.update()
    return loss.detach(), state


def bench(args):
    m = pick(args)
    t, b = (1, 1) if args.mode == "decode" else (args.seq_len, args.batch)
    m.train(args.mode == "train")
    opt = MinTrustLamb(m.parameters(), 1e-4)
    scaler = torch.amp.GradScaler(args.device.split(":")[0], enabled=args.dtype == "fp16")
    state, times = None, []
    new = lambda: torch.randint(0, 256, (t, b), device=args.device)
    if args.mode == "decode":  # fill the memory first
        with torch.no_grad(), amp(args):
            state = m(torch.randint(0, 256, (args.memory, 1), device=args.device))[2]
    else:
        with torch.no_grad(), amp(args):
            for _ in range(-(-args.memory // t)):
                state = m(new(), state)[2]
    for i in range(args.warmup + args.runs):
        x, y = new(), new()
        keep = state if args.mode != "decode" else None
        sync(args.device)
        start = time.perf_counter()
        if args.mode == "train":
            train_step(m, opt, scaler, args, x, y, state)
        else:
            with torch.no_grad(), amp(args):
                for _ in range(32 if args.mode == "decode" else 1):
                    out = m(x, state)
                    state = out[2] if keep is None else keep
        sync(args.device)
        times.append((time.perf_counter() - start) / (32 if args.mode == "decode" else 1))
    times = times[args.warmup:]
    med = statistics.median(times)
    print(json.dumps({"size": args.size, "mode": args.mode, "dtype": args.dtype, "device": args.device, "threads": torch.get_num_threads(),
                      "batch": b, "seq_len": t, "memory": args.memory, "params": sum(p.numel() for p in m.parameters()),
                      "median_s": round(med, 5), "min_s": round(min(times), 5), "tokens_per_s": round(t * b / med, 1),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                      "peak_gpu_mb": torch.cuda.max_memory_allocated() // 2**20 if args.device.startswith("cuda") else None}))


def batches(data, batch, device):
    n = len(data) // batch
    return torch.frombuffer(bytearray(data[: n * batch]), dtype=torch.uint8).view(batch, n).t().contiguous().to(device)


def save(m, path):
    """All parameters under PyTorch's names, as safetensors (decoder.weight is the tied encoder.weight, written once)."""
    from safetensors.torch import save_file
    save_file({k: v.detach().cpu().contiguous() for k, v in m.named_parameters()}, path)


@torch.no_grad()
def evaluate(m, args, data, batch):
    m.eval()
    src, state, total, count = batches(data, batch, args.device), None, 0.0, 0
    for i in range(0, len(src) - 1, args.seq_len):
        n = min(args.seq_len, len(src) - 1 - i)
        with amp(args):
            _, logits, state = m(src[i:i + n].long(), state)
        total += F.cross_entropy(logits.float().flatten(0, 1), src[i + 1:i + 1 + n].long().flatten(), reduction="sum").item()
        count += n * batch
    m.train()
    return total / count / math.log(2)


def train(args):
    m = pick(args).train()
    if args.save_init:
        save(m, args.save_init)
    raw = open(args.data, "rb").read()
    cut = args.train_bytes or len(raw) - 10_000_000
    src = batches(raw[:cut], args.batch, args.device)
    begin = args.valid_from if args.valid_from is not None else (90_000_000 if len(raw) == 100_000_000 else cut)
    valid = raw[begin:begin + args.valid_bytes]
    opt = MinTrustLamb(m.parameters(), args.lr)
    scaler = torch.amp.GradScaler(args.device.split(":")[0], enabled=args.dtype == "fp16")
    state, at, start, logged, seen = None, 0, time.perf_counter(), [], 0
    for step in range(1, args.steps + 1):
        if args.minutes and time.perf_counter() - start >= 60 * args.minutes:
            break
        n = args.seq_len
        n = min(n, len(src) - 1 - at)
        if n < 5:
            at, state, n = 0, None, args.seq_len
        for g in opt.param_groups:
            g["lr"] = args.lr * min(1.0, step / max(1, args.warmup_steps))
        loss, state = train_step(m, opt, scaler, args, src[at:at + n].long(), src[at + 1:at + 1 + n].long(), state)
        at, seen = at + n, seen + n * args.batch
        logged.append(loss)
        if step % args.log_every == 0:
            sec = time.perf_counter() - start
            bpc = torch.stack(logged).mean().item() / math.log(2)
            print(json.dumps({"step": step, "tokens": seen, "seconds": round(sec, 1), "tokens_per_s": round(seen / sec, 1), "train_bpc": round(bpc, 4)}), flush=True)
            logged = []
    if args.save:
        save(m, args.save)
    print(json.dumps({"valid_bpc": round(evaluate(m, args, valid, 8), 4), "valid_bytes": len(valid), "seconds": round(time.perf_counter() - start, 1)}))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    c = sub.add_parser("check")
    c.add_argument("fixtures", nargs="+"), c.set_defaults(run=check)
    for name, run in (("bench", bench), ("train", train)):
        s = sub.add_parser(name)
        s.set_defaults(run=run)
        s.add_argument("--size", choices=SIZES, default="S"), s.add_argument("--attend", choices=["none", "one", "all"], default="one")
        s.add_argument("--dtype", choices=["f32", "bf16", "fp16"], default="f32"), s.add_argument("--device", default="cpu")
        s.add_argument("--threads", type=int), s.add_argument("--seed", type=int, default=1)
        s.add_argument("--batch", type=int, default=16), s.add_argument("--seq-len", type=int, default=256)
        s.add_argument("--sdpa", action="store_true", help="scaled_dot_product_attention instead of explicit scores"), s.add_argument("--mem-len", type=int, default=5000), s.add_argument("--dropout", type=float, default=0.1)
        if name == "bench":
            s.add_argument("--mode", choices=["train", "forward", "decode"], default="train")
            s.add_argument("--memory", type=int, default=1024), s.add_argument("--warmup", type=int, default=2), s.add_argument("--runs", type=int, default=7)
        else:
            s.add_argument("--data", required=True), s.add_argument("--steps", type=int, default=1000), s.add_argument("--lr", type=float, default=2e-3)
            s.add_argument("--minutes", type=float, help="stop after so many, if not after --steps")
            s.add_argument("--warmup-steps", type=int, default=800), s.add_argument("--log-every", type=int, default=50)
            s.add_argument("--save-init", help="write the initial weights here, as safetensors"), s.add_argument("--save", help="write the trained weights here")
            s.add_argument("--train-bytes", type=int), s.add_argument("--valid-bytes", type=int, default=500_000), s.add_argument("--valid-from", type=int)
    args = p.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
