#!/usr/bin/env python3
"""Logs with planted oddities, for measuring how well scores find them.

    scripts/anomalies/plant.py OUT

Writes for each of four formats (syslog, nginx, jsonl, csv) and three seeds two files and a list: OUT/FORMAT-SEED.past, of 4,000 ordinary
lines; OUT/FORMAT-SEED.today, of 2,000 more, 40 of which were made odd; and OUT/FORMAT-SEED.odd, a line "NUMBER KIND" for each of those. The
logs are invented: hosts, users, paths and rates follow fixed habits, and the same seed gives the same files.

Five kinds, eight lines of each. In every kind at least half of the lines consist of bytes, and mostly of words, that are frequent in
the log: what is odd is where they stand.

    range   a number far from its habit: too large, too small, negative, of the wrong unit
    wrong   a known value in the wrong place: a host that does another's job, a user elsewhere, a method that a path never has
    order   a line out of order: its time is minutes, hours or days off
    new     a message that was never there: half of them made of words of the log, half of new ones
    broken  a line that lost a part, has one twice, was cut short or mixed with another
"""

import argparse
import json
import random
from pathlib import Path

PAST, TODAY, OF_EACH = 4000, 2000, 8
KINDS = ["range", "wrong", "order", "new", "broken"]
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class Clock:
    """Seconds since the beginning of a month."""

    def __init__(self, rng):
        self.rng, self.now = rng, rng.randrange(3600)

    def tick(self, most):
        self.now += self.rng.randrange(1, most)
        return self.now


def clock_parts(seconds):
    return 1 + seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60, seconds % 60


class Syslog:
    """Lines of three services on five hosts, each of which runs some of them."""

    RUNS = {"web1": ["sshd", "cron"], "web2": ["sshd", "cron"], "db1": ["sshd", "backup"], "db2": ["sshd", "backup"], "mail": ["sshd", "postfix"]}
    USERS = {"web1": ["deploy", "alice"], "web2": ["deploy", "bob"], "db1": ["postgres", "carol"], "db2": ["postgres", "dave"], "mail": ["vmail", "erin"]}

    def __init__(self, rng):
        self.rng, self.clock = rng, Clock(rng)

    def at(self, seconds):
        day, hour, minute, second = clock_parts(seconds)
        return f"Mar {day:2d} {hour:02d}:{minute:02d}:{second:02d}"

    def line(self, host=None, service=None, seconds=None, user=None, message=None, number=None):
        rng = self.rng
        seconds = self.clock.tick(40) if seconds is None else seconds
        host = host or rng.choice(list(self.RUNS))
        service = service or rng.choice(self.RUNS[host])
        user = user or rng.choice(self.USERS[host])
        pid = rng.randrange(1000, 9999)
        if message is None:
            if service == "sshd":
                port = rng.randrange(40000, 60000) if number is None else number
                message = rng.choice([
                    f"Accepted publickey for {user} from 10.0.{rng.randrange(4)}.{rng.randrange(1, 40)} port {port} ssh2",
                    f"session opened for user {user} by (uid=0)",
                    f"session closed for user {user}",
                ]) if number is None else f"Accepted publickey for {user} from 10.0.{rng.randrange(4)}.{rng.randrange(1, 40)} port {port} ssh2"
            elif service == "cron":
                message = f"({user}) CMD (/usr/local/bin/{rng.choice(['rotate', 'report', 'sync'])} --quiet)"
            elif service == "backup":
                seconds_taken = rng.randrange(20, 60) if number is None else number
                message = f"dump of {rng.choice(['orders', 'users', 'events'])} finished in {seconds_taken} s, {rng.randrange(200, 400)} MB"
            else:
                size = rng.randrange(900, 9000) if number is None else number
                message = f"{rng.randrange(16**6):06x}: to=<{user}@example.org>, size={size}, status=sent"
        return f"{self.at(seconds)} {host} {service}[{pid}]: {message}"

    def odd(self, kind, i):
        rng, now = self.rng, self.clock.now
        if kind == "range":
            host, service, number = [("db1", "backup", 7), ("db2", "backup", 4210), ("mail", "postfix", 61000000), ("mail", "postfix", 3), ("web1", "sshd", 22),
                                     ("db1", "sshd", 80), ("db2", "backup", -35), ("mail", "postfix", 990000)][i]
            return self.line(host=host, service=service, number=number)
        if kind == "wrong":
            host, service, user = [("web1", "backup", None), ("mail", "cron", None), ("db1", "postfix", None), ("web2", "sshd", "postgres"), ("db1", "sshd", "deploy"),
                                   ("mail", "sshd", "alice"), ("web1", "sshd", "vmail"), ("db2", "cron", "carol")][i]
            return self.line(host=host, service=service, user=user)
        if kind == "order":
            return self.line(seconds=max(0, now + [-7200, -36000, 5 * 3600, -86400, 40000, -3 * 3600, 86400 * 3, -20000][i]))
        if kind == "new":
            return self.line(host="web1", service="sshd", message=[
                "session closed for user deploy by (uid=0) from 10.0.1.7", "Accepted session for publickey opened", "dump of users opened for user deploy",
                "status=sent for user alice from 10.0.2.3 port 50211", "error: maximum authentication attempts exceeded", "fatal: Read from socket failed: Connection reset by peer",
                "Invalid user oracle from 185.220.101.4", "Bad protocol version identification"][i])
        whole, other = self.line(), self.line()
        return [whole[:30], whole.replace("]: ", " "), whole + " " + other[16:40], whole[16:], whole[:20] + other[10:], whole.replace(" ", "", 3), whole[:-9], other[:25] + whole[:60]][i]


class Nginx:
    """An access log: paths have their methods, sizes and statuses."""

    PATHS = {"/": ("GET", 200, 5000, 6000), "/login": ("POST", 302, 0, 1), "/api/items": ("GET", 200, 800, 4000), "/api/orders": ("POST", 201, 90, 120),
             "/static/app.js": ("GET", 304, 0, 1), "/static/logo.png": ("GET", 200, 20480, 20481), "/health": ("HEAD", 204, 0, 1)}
    AGENTS = ["Mozilla/5.0 (X11; Linux x86_64) Firefox/115.0", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0) Safari/604.1", "curl/8.4.0"]

    def __init__(self, rng):
        self.rng, self.clock = rng, Clock(rng)

    def line(self, path=None, method=None, status=None, size=None, seconds=None, agent=None, taken=None, request=None):
        rng = self.rng
        seconds = self.clock.tick(12) if seconds is None else seconds
        day, hour, minute, second = clock_parts(seconds)
        path = path or rng.choice(list(self.PATHS))
        of_path, code, low, high = self.PATHS[path]
        size = rng.randrange(low, high) if size is None else size
        agent = agent or ("curl/8.4.0" if path == "/health" else rng.choice(self.AGENTS[:2]))
        taken = f"0.{rng.randrange(10, 90):03d}" if taken is None else taken
        request = request or f"{method or of_path} {path} HTTP/1.1"
        return (f'192.0.2.{rng.randrange(1, 60)} - - [{day:02d}/Mar/2031:{hour:02d}:{minute:02d}:{second:02d} +0000] "{request}" '
                f'{status or code} {size} "-" "{agent}" {taken}')

    def odd(self, kind, i):
        now = self.clock.now
        if kind == "range":
            return [lambda: self.line("/", size=12), lambda: self.line("/api/items", size=9400000), lambda: self.line("/", taken="58.120"), lambda: self.line("/login", taken="9.004"),
                    lambda: self.line("/static/logo.png", size=304), lambda: self.line("/api/orders", size=20480), lambda: self.line("/health", taken="0.999"), lambda: self.line("/", size=-1)][i]()
        if kind == "wrong":
            return [lambda: self.line("/login", method="GET"), lambda: self.line("/api/orders", method="HEAD"), lambda: self.line("/", status=500), lambda: self.line("/static/app.js", method="POST"),
                    lambda: self.line("/", agent="curl/8.4.0"), lambda: self.line("/health", status=302), lambda: self.line("/api/items", status=403), lambda: self.line("/health", agent=self.AGENTS[1])][i]()
        if kind == "order":
            return self.line(seconds=max(0, now + [-3600, -40000, 7200, -86400, 30000, -9000, 86400 * 2, -15000][i]))
        if kind == "new":
            return self.line(request=["GET /api/login HTTP/1.1", "GET /static/items.js HTTP/1.1", "POST /api/orders/items HTTP/1.1", "GET /health/app.js HTTP/1.1", "GET /.env HTTP/1.1",
                                      "GET /wp-admin/setup.php?step=1 HTTP/1.1", "POST /login?user=admin'-- HTTP/1.1", "\\x16\\x03\\x01\\x00"][i], path="/", status=404 if i > 3 else 200)
        whole, other = self.line(), self.line()
        return [whole[:40], whole.replace('"', "", 1), whole + other[:30], whole[12:], whole.replace(" - - ", " - "), whole[:60] + whole[50:], whole[:-25], other[:45] + whole[45:]][i]


class JsonLines:
    """Events of an application: each event has its fields and levels."""

    def __init__(self, rng):
        self.rng, self.clock = rng, Clock(rng)

    def line(self, event=None, seconds=None, **changes):
        rng = self.rng
        seconds = self.clock.tick(20) if seconds is None else seconds
        day, hour, minute, second = clock_parts(seconds)
        event = event or rng.choice(["order.created", "order.paid", "cache.miss", "job.done", "user.login"])
        shop = rng.choice(["berlin", "lyon", "porto"])
        fields = {
            "order.created": lambda: {"level": "info", "shop": shop, "items": rng.randrange(1, 9), "total": rng.randrange(10, 200) + 0.5},
            "order.paid": lambda: {"level": "info", "shop": shop, "method": rng.choice(["card", "invoice"]), "ms": rng.randrange(80, 300)},
            "cache.miss": lambda: {"level": "debug", "key": f"item:{rng.randrange(1000, 2000)}", "ms": rng.randrange(1, 9)},
            "job.done": lambda: {"level": "info", "job": rng.choice(["mail", "index", "stock"]), "ms": rng.randrange(1000, 4000), "retries": 0},
            "user.login": lambda: {"level": "info", "user": rng.randrange(100, 400), "via": rng.choice(["web", "app"])},
        }[event]()
        fields.update(changes)
        return json.dumps({"ts": f"2031-03-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}Z", "event": event, **fields})

    def odd(self, kind, i):
        now = self.clock.now
        if kind == "range":
            return [lambda: self.line("order.created", items=97), lambda: self.line("order.paid", ms=28000), lambda: self.line("cache.miss", ms=910), lambda: self.line("job.done", ms=12),
                    lambda: self.line("job.done", retries=6), lambda: self.line("order.created", total=-4.5), lambda: self.line("user.login", user=7), lambda: self.line("order.created", total=98000.5)][i]()
        if kind == "wrong":
            return [lambda: self.line("order.created", shop="index"), lambda: self.line("order.paid", method="web"), lambda: self.line("job.done", job="card"), lambda: self.line("user.login", via="invoice"),
                    lambda: self.line("cache.miss", level="info"), lambda: self.line("order.paid", level="debug"), lambda: self.line("job.done", job="berlin"), lambda: self.line("user.login", level="error")][i]()
        if kind == "order":
            return self.line(seconds=max(0, now + [-3600, -50000, 9000, -86400, 60000, -7000, 86400 * 4, -12000][i]))
        if kind == "new":
            return [lambda: self.line("user.login", shop="lyon", items=2), lambda: self.line("cache.miss", method="card"), lambda: self.line("job.done", user=210), lambda: self.line("order.paid", retries=0, job="mail"),
                    lambda: self.line("user.login", error="token expired"), lambda: self.line("job.done", trace="at worker.rs:118"), lambda: self.line("cache.miss", shard=3), lambda: self.line("order.paid", refunded=True)][i]()
        whole, other = self.line(), self.line()
        return [whole[:50], whole.replace('"', "", 1), whole + other, whole[10:], whole.replace(": ", ":", 2), whole.replace("}", ""), whole[:-12], other[:40] + whole[30:]][i]


class Csv:
    """Readings of sensors: each sensor has its unit and its band."""

    SENSORS = {"t-01": ("C", 180, 240), "t-02": ("C", 180, 240), "p-07": ("kPa", 9900, 10200), "f-03": ("m3/h", 400, 600), "v-11": ("V", 2280, 2330)}

    def __init__(self, rng):
        self.rng, self.clock = rng, Clock(rng)

    def line(self, sensor=None, seconds=None, value=None, unit=None, state=None, site=None):
        rng = self.rng
        seconds = self.clock.tick(9) if seconds is None else seconds
        day, hour, minute, second = clock_parts(seconds)
        sensor = sensor or rng.choice(list(self.SENSORS))
        of_sensor, low, high = self.SENSORS[sensor]
        value = rng.randrange(low, high) / 10 if value is None else value
        site = site or ("north" if sensor[0] in "tp" else "south")
        return f"2031-03-{day:02d} {hour:02d}:{minute:02d}:{second:02d},{site},{sensor},{value},{unit or of_sensor},{state or 'ok'}"

    def odd(self, kind, i):
        now = self.clock.now
        if kind == "range":
            sensor, value = [("t-01", 81.4), ("t-02", 2.2), ("p-07", 10.1), ("f-03", 511.0), ("v-11", 23.1), ("t-01", -20.4), ("f-03", 5.0), ("v-11", 402.2)][i]
            return self.line(sensor, value=value)
        if kind == "wrong":
            return [lambda: self.line("t-01", unit="V"), lambda: self.line("p-07", unit="C"), lambda: self.line("f-03", site="north"), lambda: self.line("v-11", site="north"),
                    lambda: self.line("t-02", site="south"), lambda: self.line("f-03", unit="kPa"), lambda: self.line("p-07", site="south"), lambda: self.line("v-11", unit="m3/h")][i]()
        if kind == "order":
            return self.line(seconds=max(0, now + [-1800, -40000, 5400, -86400, 30000, -9000, 86400 * 2, -15000][i]))
        if kind == "new":
            return [lambda: self.line("t-01", state="north"), lambda: self.line("p-07", state="C"), lambda: self.line("v-11", value="ok"), lambda: self.line("f-03", value="t-01"),
                    lambda: self.line("t-02", state="stale"), lambda: self.line("f-03", state="calibrating"), lambda: self.line("p-07", value="NaN"), lambda: self.line("v-11", unit="mV")][i]()
        whole, other = self.line(), self.line()
        return [whole[:24], whole.replace(",", "", 1), whole + "," + other, whole[11:], whole.replace(",ok", ""), whole.replace(",", ";"), whole[:-6], other[:30] + whole[20:]][i]


FORMATS = {"syslog": Syslog, "nginx": Nginx, "jsonl": JsonLines, "csv": Csv}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, kind_of_log in FORMATS.items():
        for seed in (1, 2, 3):
            rng = random.Random(f"{name} {seed}")
            log = kind_of_log(rng)
            past = [log.line() for _ in range(PAST)]
            planted = [(kind, i) for kind in KINDS for i in range(OF_EACH)]
            rng.shuffle(planted)
            # Not among the first 200: whoever begins with today's file has to have seen something.
            where = dict(zip(sorted(rng.sample(range(200, TODAY), len(planted))), planted))
            today = [log.odd(*where[n]) if n in where else log.line() for n in range(TODAY)]
            base = out / f"{name}-{seed}"
            base.with_suffix(".past").write_text("".join(line + "\n" for line in past))
            base.with_suffix(".today").write_text("".join(line + "\n" for line in today))
            base.with_suffix(".odd").write_text("".join(f"{n + 1} {kind}\n" for n, (kind, _) in sorted(where.items())))


main()
