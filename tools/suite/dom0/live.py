#!/usr/bin/env python3
"""Clients that look on while a server replaces itself. Runs in dom0.

    live.py CHECK HOST[:PORT] STOP [ARGUMENT...]

Each goes on until there is a file STOP, notes when each answer came, and prints one line of JSON.
When it has had its first answers, or all its connections, it makes a file STOP.ready.CHECK.PID.
What must not happen (a connection that ends, an answer that is wrong, twice or missing) is told on
standard error, with status 1.
"""

import heapq
import json
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time

# How long an answer may take before it counts as missing.
PATIENCE = 60
# How long a reader takes nothing, in s: less than servers wait for such a one (segue-serve: 30).
HOLD = 10


class Wrong(Exception):
    """The server did something wrong."""


class Stop:
    """Looks for the file now and then: a stat is not free here."""

    def __init__(self, path, check):
        self.path, self.check = path, check
        self.next, self.said = 0, False

    def ready(self):
        if not self.said:
            self.said = True
            open(f"{self.path}.ready.{self.check}.{os.getpid()}", "w").close()

    def __call__(self):
        now = time.monotonic()
        if now < self.next:
            return False
        self.next = now + 0.1
        return os.path.exists(self.path)


class Answers:
    """When answers came, and how long each took."""

    def __init__(self):
        self.took = []

    def add(self, sent, now):
        self.took.append((time.time(), now - sent))

    def summary(self):
        times = sorted(seconds for _, seconds in self.took)
        if not times:
            raise Wrong("there was not one answer")
        at = lambda share: round(times[min(len(times) - 1, int(len(times) * share))] * 1000, 1)
        # The late ones with the time of day, so that they can be laid beside the switches.
        late = [(round(t, 3), round(s * 1000, 1)) for t, s in self.took]
        late.sort(key=lambda pair: -pair[1])
        return {
            "answers": len(times),
            "median_ms": at(0.5),
            "p99_ms": at(0.99),
            "longest_ms": round(times[-1] * 1000, 1),
            "late": sorted(late[:2000]),
        }


def connect(address, receive_buffer=None):
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(PATIENCE)
    sock.connect(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Line:
    """One connection of `lines`: what it waits for, in order."""

    def __init__(self, sock, number):
        self.sock, self.number = sock, number
        self.next, self.waiting, self.got = 0, [], b""

    def send(self):
        # Of different lengths, so that a byte too many or too few shows.
        text = b"%d %d %s\n" % (self.number, self.next, b"x" * (self.next * 7 % 50))
        self.next += 1
        self.waiting.append((text, time.monotonic()))
        if self.sock.send(text) != len(text):
            raise Wrong(f"connection {self.number} took a part of a line")

    def receive(self, answers):
        data = self.sock.recv(65536)
        if not data:
            raise Wrong(f"connection {self.number} was closed")
        self.got += data
        while (end := self.got.find(b"\n")) >= 0:
            line, self.got = self.got[: end + 1], self.got[end + 1 :]
            if not self.waiting:
                raise Wrong(f"connection {self.number} got {line!r}, and waits for nothing")
            wanted, sent = self.waiting.pop(0)
            if line != wanted:
                raise Wrong(f"connection {self.number} got {line!r} for {wanted!r}")
            answers.add(sent, time.monotonic())


def lines(address, stop, count="1000", period="4"):
    """Mostly idle connections: each sends a numbered line every few seconds."""
    count, period = int(count), float(period)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
    all_lines, answers, poll = {}, Answers(), select.epoll()
    opened = time.monotonic()
    for number in range(count):
        sock = connect(address)
        sock.setblocking(False)
        all_lines[sock.fileno()] = Line(sock, number)
        poll.register(sock.fileno(), select.EPOLLIN)
    start = time.monotonic()
    stop.ready()
    due = [(start + n * period / count, fd) for n, fd in enumerate(all_lines)]
    heapq.heapify(due)
    stopping = None
    while True:
        now = time.monotonic()
        if stopping is None and stop():
            stopping = now
        if stopping is not None:
            waiting = [line for line in all_lines.values() if line.waiting]
            if not waiting:
                break
            if now > stopping + PATIENCE:
                raise Wrong(f"{len(waiting)} connections had no answer within {PATIENCE} s")
        while stopping is None and due[0][0] <= now:
            at, fd = heapq.heappop(due)
            all_lines[fd].send()
            heapq.heappush(due, (at + period, fd))
        for fd, _ in poll.poll(0.05, 256):
            all_lines[fd].receive(answers)
    # Nothing is left to come but the end.
    for line in all_lines.values():
        line.sock.setblocking(True)
        line.sock.shutdown(socket.SHUT_WR)
        if line.got or (rest := line.sock.recv(100)):
            raise Wrong(f"connection {line.number} got more than it sent: {line.got + rest!r}")
    sent = sum(line.next for line in all_lines.values())
    return {
        "connections": count,
        "open_s": round(start - opened, 1),
        "sent": sent,
        **answers.summary(),
    }


# What is asked, and how the end of an answer is known.
def http_answer(file):
    status = file.readline()
    length = None
    while (line := file.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if not status.startswith(b"HTTP/1.1 200 ") or length is None:
        raise Wrong(f"the answer was {status!r}")
    return file.read(length)


def resp_answer(file):
    head = file.readline()
    if not head.startswith((b"$", b"+", b":")):
        raise Wrong(f"the answer was {head!r}")
    return file.read(int(head[1:]) + 2) if head.startswith(b"$") else head


ASK = {
    "http": (b"GET / HTTP/1.1\r\nHost: segue\r\n\r\n", http_answer),
    "resp": (b"*1\r\n$4\r\nPING\r\n", resp_answer),
    "echo": (b"are you there?\n", lambda file: file.readline()),
}


def probe(address, stop, what="http", rate="100"):
    """One connection that asks so many times a second: what a client sees of a switch."""
    ask, answer = ASK[what]
    sock = connect(address)
    file, answers, first = sock.makefile("rb"), Answers(), None
    period, due = 1 / float(rate), time.monotonic()
    while not stop():
        sent = time.monotonic()
        sock.sendall(ask)
        got = answer(file)
        answers.add(sent, time.monotonic())
        stop.ready()
        first = first or got
        if got != first:
            raise Wrong(f"the answer was {got!r}, and {first!r} before")
        # Not to catch up: late is late once.
        due = max(due + period, time.monotonic())
        time.sleep(max(0, due - time.monotonic()))
    return answers.summary()


def client_overflows():
    """Datagrams that this host's own sockets had no room for."""
    with open("/proc/net/snmp") as f:
        names, numbers = [line.split() for line in f if line.startswith("Udp:")]
    return int(numbers[names.index("RcvbufErrors")])


def udp(address, stop, rate="1000"):
    """Datagrams at this rate, each numbered; all have to come back, once."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # SO_SNDBUFFORCE and SO_RCVBUFFORCE: all that has waited comes back at once.
    for option in 32, 33:
        sock.setsockopt(socket.SOL_SOCKET, option, 16 << 20)
    overflows = client_overflows()
    sock.connect(address)
    sock.settimeout(5)
    back, last, longest, wrong, order = set(), None, 0.0, 0, 0
    done = threading.Event()

    def receive():
        nonlocal last, longest, wrong, order
        highest = -1
        while not done.is_set():
            try:
                number = int.from_bytes(sock.recv(100)[:8], "big")
            except (TimeoutError, ConnectionRefusedError):
                continue
            now = time.monotonic()
            if last is not None:
                longest = max(longest, now - last)
            last = now
            stop.ready()
            wrong += number in back
            back.add(number)
            order += number < highest
            highest = max(highest, number)

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    start, sent = time.monotonic(), 0
    while not stop():
        # As many as are due by now: sleeping is not exact to the millisecond.
        due = int((time.monotonic() - start) * float(rate))
        while sent < due:
            sock.send(sent.to_bytes(8, "big") + b"datagram")
            sent += 1
        time.sleep(0.002)
    seconds = time.monotonic() - start
    end = time.monotonic() + 5
    while len(back) < sent and time.monotonic() < end:
        time.sleep(0.05)
    done.set()
    return {
        "sent": sent,
        "rate": round(sent / seconds),
        "lost": sent - len(back),
        "twice": wrong,
        "out_of_order": order,
        "lost_by_client": client_overflows() - overflows,
        "longest_gap_ms": round(longest * 1000, 1),
    }


def ping(address, stop, interval="0.01"):
    """ping, and the longest time between two of its answers."""
    command = ["ping", "-n", "-D", "-i", interval, address[0]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    lines = [process.stdout.readline(), process.stdout.readline()]
    stop.ready()
    # Read all along: what nobody reads stops who writes.
    rest = []
    reader = threading.Thread(target=lambda: rest.append(process.stdout.read()), daemon=True)
    reader.start()
    while not stop():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait()
    reader.join()
    said = "".join(lines + rest)
    times = [float(at) for at in re.findall(r"^\[([\d.]+)\].* bytes from", said, re.M)]
    sent = int(re.search(r"(\d+) packets transmitted", said).group(1))
    gaps = [after - before for before, after in zip(times, times[1:])]
    # ping ends at once when it is stopped: what it sent in the last second may be on its way, which
    # a switch makes longer.
    answered = set(map(int, re.findall(r"^\[.* bytes from .* icmp_seq=(\d+)", said, re.M)))
    open_ = sent - max(answered, default=0)
    return {
        "sent": sent,
        "lost": sent - len(answered) - min(open_, round(1 / float(interval))),
        "on_their_way": open_,
        "twice": said.count("DUP!"),
        "longest_gap_ms": round(max(gaps, default=0) * 1000, 1),
    }


class Gaps:
    """The times between answers, whatever was asked."""

    def __init__(self):
        self.last, self.count, self.all = None, 0, []

    def add(self, at):
        if self.last is not None:
            self.all.append((round(at, 4), round((at - self.last) * 1000, 2)))
        self.last, self.count = at, self.count + 1

    def summary(self):
        longest = sorted(self.all, key=lambda pair: -pair[1])[:1000]
        # With the time of day of the answer that ended each, so that they can be laid beside switches.
        return {
            "answers": self.count,
            "longest_gap_ms": longest[0][1] if longest else 0,
            "late": sorted(longest),
        }


def away(address, stop, what, rate, *arguments):
    """How long nobody answers: asks at a rate, goes on whatever happens."""
    client = {"udp": away_udp, "http": away_http, "ping": away_ping}[what]
    return client(address, stop, float(rate), *arguments)


def away_udp(address, stop, rate):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in 32, 33:
        sock.setsockopt(socket.SOL_SOCKET, option, 16 << 20)
    sock.connect(address)
    sock.setblocking(False)
    gaps, due, sent = Gaps(), time.monotonic(), 0
    while not stop():
        # Not at that rate when nobody has answered for a second: dom0 has to bring the domain back.
        period = 0.05 if gaps.last and time.time() - gaps.last > 1 else 1 / rate
        while due <= time.monotonic():
            due += period
            sent += 1
            try:
                sock.send(b"%d" % sent)
            except OSError:
                pass  # Nobody is there.
        select.select([sock], [], [], 1 / rate)
        try:
            while sock.recv(100):
                gaps.add(time.time())
                stop.ready()
        except OSError:
            pass
    return {"sent": sent, **gaps.summary()}


def away_http(address, stop, rate, path, patience):
    """On one connection as long as it lasts; who does not answer in time is asked anew."""
    gaps, due, sock, failed = Gaps(), time.monotonic(), None, 0
    ask = b"GET %s HTTP/1.1\r\nHost: away\r\n\r\n" % path.encode()
    while not stop():
        try:
            if sock is None:
                sock = socket.create_connection(address, timeout=0.2)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(float(patience))
                file = sock.makefile("rb")
            sock.sendall(ask)
            http_answer(file)
            gaps.add(time.time())
            stop.ready()
        except (OSError, Wrong):
            failed += 1
            if sock is not None:
                sock.close()
            sock = None
        due = max(due + 1 / rate, time.monotonic())
        time.sleep(max(0, due - time.monotonic()))
    return {"failed": failed, **gaps.summary()}


def away_ping(address, stop, rate):
    # Its answers come in lines, with the time of day.
    command = ["ping", "-n", "-D", "-i", str(1 / rate), address[0]]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    gaps = Gaps()

    def read():
        for line in process.stdout:
            if at := re.match(r"\[([\d.]+)\].* bytes from", line):
                gaps.add(float(at.group(1)))
                stop.ready()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while not stop():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait()
    reader.join()
    return gaps.summary()


PERIOD = (1 << 20) + 4099
PATTERN = random.Random(2).randbytes(PERIOD) * 2


def stream(at, length):
    at %= PERIOD
    return PATTERN[at : at + length]


def zero(address, stop):
    """Reads nothing for a while, with a window of no bytes, then all there is; again and again."""
    rounds, total = 0, 0
    while True:
        sock = connect(address, receive_buffer=4096)
        sock.settimeout(3)
        sent = 0
        try:
            while True:
                sent += sock.send(stream(sent, 65536))
                if sent > 64 << 20:
                    raise Wrong("it takes 64 MiB of a peer that reads none of them back")
        except TimeoutError:
            pass
        stop.ready()
        time.sleep(HOLD)
        sock.settimeout(PATIENCE)
        done = threading.Thread(target=lambda: sock.shutdown(socket.SHUT_WR), daemon=True)
        done.start()
        at = 0
        while data := sock.recv(1 << 18):
            if data != stream(at, len(data)):
                raise Wrong(f"other bytes than were sent, behind {at}")
            at += len(data)
        if at != sent:
            raise Wrong(f"{at} bytes of {sent} came back")
        done.join()
        sock.close()
        rounds, total = rounds + 1, total + at
        if stop():
            return {"rounds": rounds, "bytes": total}


def down(address, stop, mib):
    """Downloads of what the chargen port sends: each byte is known."""
    line = lambda n: bytes(32 + (n + i) % 95 for i in range(72)) + b"\r\n"
    wanted = b"".join(line(n) for n in range(95)) * 64
    total, at, start = int(mib) << 20, 0, time.monotonic()
    sock = connect(address)
    period = len(wanted) // 2
    stop.ready()
    while at < total:
        data = sock.recv(1 << 17)
        if not data:
            raise Wrong(f"the end, behind byte {at}")
        begin = at % period
        if data != wanted[begin : begin + len(data)]:
            raise Wrong(f"other bytes than chargen's, behind {at}")
        at += len(data)
    return {"bytes": at, "seconds": round(time.monotonic() - start, 1)}


def table(address, stop, connections="4"):
    """Writes keys over several connections; in the end each has what was acknowledged last."""
    known, failed = [{} for _ in range(int(connections))], []

    def write(number):
        try:
            sock = connect(address)
            file, mine, chance = sock.makefile("rb"), known[number], random.Random(number)
            quiet = Stop(stop.path, stop.check)
            while not quiet():
                batch = {}
                for _ in range(16):
                    key = f"live:{number}:{chance.randrange(2000)}"
                    batch[key] = f"{chance.getrandbits(64):x}" * chance.randrange(1, 9)
                words = [("SET", k, v) for k, v in batch.items()]
                sock.sendall(b"".join(map(resp, words)))
                for _ in words:
                    if (said := file.readline()) != b"+OK\r\n":
                        raise Wrong(f"SET was answered by {said!r}")
                mine.update(batch)
                stop.ready()
        except Exception as error:  # Told below.
            failed.append(error)

    threads = [threading.Thread(target=write, args=[n], daemon=True) for n in range(len(known))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    sock = connect(address)
    file, count = sock.makefile("rb"), 0
    for mine in known:
        keys = list(mine)
        # Some at a time: each on its own would take minutes.
        for some in (keys[at : at + 200] for at in range(0, len(keys), 200)):
            sock.sendall(b"".join(resp(("GET", key)) for key in some))
            for key in some:
                got = resp_answer(file)
                if got != mine[key].encode() + b"\r\n":
                    raise Wrong(f"{key} is {got!r}, not {mine[key]!r}")
                count += 1
    return {"keys": count}


def resp(words):
    parts = b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)
    return b"*%d\r\n" % len(words) + parts


def sample(address, stop, kv, period="0.2"):
    """How many requests a web server and a key-value store have answered, over time."""
    web, store = connect(address), connect((kv, 6379))
    files = web.makefile("rb"), store.makefile("rb")
    counts, due = [], time.monotonic()
    while not stop():
        web.sendall(b"GET /metrics HTTP/1.1\r\nHost: segue\r\n\r\n")
        page = http_answer(files[0]).decode()
        http = sum(map(int, re.findall(r"^httpd_requests_total\S* (\d+)$", page, re.M)))
        store.sendall(resp(("INFO",)))
        page = resp_answer(files[1]).decode()
        commands = re.search(r"total_commands_processed:(\d+)", page)
        counts.append((round(time.time(), 3), http, int(commands.group(1))))
        stop.ready()
        due = max(due + float(period), time.monotonic())
        time.sleep(max(0, due - time.monotonic()))
    return {"counts": counts}


CHECKS = {f.__name__: f for f in [lines, probe, udp, ping, away, zero, down, table, sample]}


def main():
    check, address, stop, *arguments = sys.argv[1:]
    host, _, port = address.partition(":")
    try:
        result = CHECKS[check]((host, int(port or 0)), Stop(stop, check), *arguments)
        print(json.dumps(result))
    except (Wrong, OSError) as error:
        sys.exit(f"live.py {check}: {type(error).__name__}: {error}")


main()
