#!/usr/bin/env python3
"""Two weeks of an invented service's log, and of its events in JSON, with the entropy of what is random in them.

    scripts/codec/logs.py DIR [--bytes 5000000] [--lines 4000] [--seed 1]

Writes DIR/before.log, DIR/week.log (as many bytes each), DIR/before.json and DIR/week.json (so many lines each, 100 to 300 bytes
a line). The weeks have the same hosts, users, paths and habits, and other events. Every draw is counted with -log2 of its probability:
the sum, printed in bytes, is what no compressor can go below that does not know the generator's state. Needs Python alone.
"""

import argparse
import json
import math
import pathlib
import random

HOSTS = [f"web-{i:02}.prod" for i in range(12)] + [f"worker-{i:02}.prod" for i in range(6)] + ["db-1.prod", "db-2.prod", "cache-1.prod"]
PATHS = ["/", "/login", "/logout", "/search", "/cart", "/cart/items", "/checkout", "/api/v1/orders", "/api/v1/users", "/api/v2/events", "/static/app.js",
         "/static/app.css", "/health", "/metrics", "/img/logo.svg", "/help/returns", "/admin/audit"]
AGENTS = ["Mozilla/5.0 (X11; Linux x86_64) Firefox/128.0", "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) Safari/17.5", "curl/8.8.0", "okhttp/4.12.0"]
COUNTRIES = ["DE", "FR", "US", "GB", "PL", "IN", "JP", "BR"]


class Draws:
    """Draws, and what they cost in bits."""

    def __init__(self, seed):
        self.rng, self.bits = random.Random(seed), 0.0

    def one_of(self, values, weights):
        i = self.rng.choices(range(len(values)), weights)[0]
        self.bits -= math.log2(weights[i] / sum(weights))
        return values[i]

    def uniform(self, n):
        """A number below n."""
        self.bits += math.log2(n)
        return self.rng.randrange(n)

    def geometric(self, mean):
        """A number from 0 on, of this mean."""
        p = 1 / (1 + mean)
        value = int(math.log(1 - self.rng.random()) / math.log(1 - p))
        self.bits -= math.log2(p) + value * math.log2(1 - p)
        return value


def falling(n):
    return [1 / (i + 1.5) for i in range(n)]


class Service:
    def __init__(self, seed, day):
        # What both weeks share does not depend on the week.
        shared = random.Random(7)
        self.users = [f"{shared.choice('abcdefghijklmnopqrstuvwxyz')}{shared.choice('aeiou')}{shared.choice('nrlmst')}{shared.randrange(10, 99)}" for _ in range(300)]
        self.draws, self.clock = Draws(seed), day * 86_400_000

    def time(self):
        self.clock += 1 + self.draws.geometric(40)
        day, rest = divmod(self.clock, 86_400_000)
        hour, rest = divmod(rest, 3_600_000)
        minute, rest = divmod(rest, 60_000)
        return f"2031-05-{1 + day:02}T{hour:02}:{minute:02}:{rest // 1000:02}.{rest % 1000:03}Z"

    def request(self):
        draws = self.draws
        path = draws.one_of(PATHS, falling(len(PATHS)))
        slow = path.startswith(("/search", "/checkout", "/api"))
        return {
            "host": draws.one_of(HOSTS, falling(len(HOSTS))),
            "user": draws.one_of(self.users, falling(len(self.users))),
            "method": "POST" if path in ("/login", "/checkout", "/cart/items", "/api/v2/events") else "GET",
            "path": path,
            "status": draws.one_of([200, 304, 302, 404, 500, 503], [900, 60, 20, 12, 5, 3]),
            "ms": (8 if slow else 1) + draws.geometric(60 if slow else 6),
            "bytes": 200 + 16 * draws.geometric(90),
            "id": f"{draws.uniform(1 << 24):06x}",
        }

    def line(self):
        draws, time = self.draws, self.time()
        kind = draws.one_of(["request", "job", "pool", "cache"], [80, 9, 7, 4])
        if kind == "request":
            r = self.request()
            return f'{time} {r["host"]} nginx: {r["id"]} {r["user"]} "{r["method"]} {r["path"]} HTTP/1.1" {r["status"]} {r["bytes"]} {r["ms"]}ms\n'
        host = draws.one_of(HOSTS, falling(len(HOSTS)))
        if kind == "job":
            name = draws.one_of(["mail", "invoice", "thumbnail", "export", "reindex"], falling(5))
            return f"{time} {host} scheduler: job {name} finished in {20 + draws.geometric(400)} ms, {draws.geometric(3)} retries\n"
        if kind == "pool":
            return f"{time} {host} postgres: connection pool {draws.uniform(4)} has {draws.uniform(32)} of 32 connections idle\n"
        return f"{time} {host} redis: evicted {1 + draws.geometric(20)} keys, {draws.uniform(1000) / 10:.1f} % of memory in use\n"

    def event(self):
        draws, time = self.draws, self.time()
        r = self.request()
        event = {"time": time, "service": "shop", "level": "error" if r["status"] >= 500 else "info", "host": r["host"], "request": {k: r[k] for k in ("id", "method", "path")},
                 "status": r["status"], "duration_ms": r["ms"], "user": {"name": r["user"], "country": draws.one_of(COUNTRIES, falling(len(COUNTRIES)))}}
        if draws.one_of([True, False], [1, 2]):
            event["agent"] = draws.one_of(AGENTS, falling(len(AGENTS)))
        return json.dumps(event, separators=(",", ":")) + "\n"


def write(path, service, one, enough):
    lines, size = [], 0
    while not enough(len(lines), size):
        lines.append(one(service))
        size += len(lines[-1])
    path.write_text("".join(lines))
    print(f"{path.name}: {len(lines)} lines, {size} bytes, of which {service.draws.bits / 8:.0f} are random")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--bytes", type=int, default=5_000_000)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(["before", "week"]):
        seed = 10 * args.seed + i
        write(args.dir / f"{name}.log", Service(seed, 7 * i), Service.line, lambda _, size: size >= args.bytes)
        write(args.dir / f"{name}.json", Service(seed + 5, 7 * i), Service.event, lambda lines, _: lines >= args.lines)


if __name__ == "__main__":
    main()
