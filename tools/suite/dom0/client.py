#!/usr/bin/env python3
"""What the tests do to a server that no ordinary client does. Runs in dom0.

    client.py HOST PORT CHECK [ARGUMENT...]

The server sends back what it is sent (apps/echo). Prints one line of key=value words; when the
server does not do what it should, says so and ends with 1.
"""

import random
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
import time

PERIOD = (1 << 20) + 4099  # No buffer or window on the way has this length.
PATTERN = random.Random(1).randbytes(PERIOD) * 2
# Any server answers it: this one with the same, a web server with a page.
REQUEST = b"GET / HTTP/1.1\r\nHost: segue\r\n\r\n"


def stream(at, length):
    """Bytes of the endless stream that is sent: at most a period at once."""
    at %= PERIOD
    return PATTERN[at : at + length]


class Wrong(Exception):
    """The server did something wrong."""


class Client:
    def __init__(self, host, port):
        self.address = (host, port)

    def connect(self, timeout=60, receive_buffer=None):
        family = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(timeout)
        sock.connect(self.address)
        return sock

    def round(self, sock, data):
        """Sends some bytes and waits until they are back."""
        sock.sendall(data)
        back = receive(sock, len(data))
        if back != data:
            raise Wrong(f"{len(back)} bytes came back for {len(data)}, or others")

    # The checks.

    def bulk(self, mib, connections="1"):
        """Sends and receives at once; all that comes back is compared, byte by byte."""
        total = int(mib) << 20
        start = time.monotonic()
        each = total // int(connections)
        run_all([lambda: self.pour(each)] * int(connections))
        seconds = time.monotonic() - start
        rate = total * 8 / seconds / 1e6
        return f"mib={mib} seconds={seconds:.1f} mbit_each_way={rate:.0f}"

    def pour(self, total):
        sock = self.connect()
        failed = []

        def send():
            at = 0
            try:
                while at < total:
                    length = min(256 * 1024, total - at)
                    sock.sendall(stream(at, length))
                    at += length
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                failed.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        at = 0
        while data := sock.recv(256 * 1024):
            if data != stream(at, len(data)):
                raise Wrong(f"other bytes than were sent, behind byte {at}")
            at += len(data)
        sender.join(60)
        if failed:
            raise Wrong(f"sending: {failed[0]}")
        if at != total:
            raise Wrong(f"{at} bytes of {total} came back, then the end")

    def half(self):
        """Who has closed its sending half gets all the answers, and then the end."""
        for length in [0, 1, 3_000_000]:
            sock = self.connect()
            sender = threading.Thread(target=lambda: finish(sock, length), daemon=True)
            sender.start()
            back = receive(sock, length + 1)
            sender.join(60)
            if len(back) != length or back != b"".join(pieces(length)):
                raise Wrong(f"{len(back)} bytes of {length} came back, or others")
        return "connections=3"

    def reset(self, count="50"):
        """Connections that are reset: fresh, after a request, with answers nobody reads."""
        for number in range(int(count)):
            sock = self.connect()
            if number % 3 == 1:
                sock.sendall(REQUEST)
            if number % 3 == 2:
                sock.settimeout(0.2)
                try:
                    sock.sendall(REQUEST * 20_000)
                except TimeoutError:
                    pass  # Its buffers are full.
            reset(sock)
        return f"connections={count}"

    def slow(self, count="6"):
        """Some do not read; others are answered all the same; then all is there for the slow."""
        readers = [self.connect(receive_buffer=4096) for _ in range(int(count))]
        sent = []
        for sock in readers:
            sock.settimeout(1)
            at = 0
            try:
                while at < 32 << 20:
                    at += sock.send(stream(at, 64 * 1024))
                raise Wrong("it takes 32 MiB of a peer that reads none of them back")
            except TimeoutError:
                pass  # Full: a window of no bytes, both ways.
            sent.append(at)
        slowest = 0
        other = self.connect()
        for _ in range(50):
            start = time.monotonic()
            self.round(other, REQUEST)
            slowest = max(slowest, time.monotonic() - start)
        if slowest > 5:
            raise Wrong(f"another client waited {slowest:.1f} s for its answer")
        got = [0] * len(readers)
        for step in range(400):
            # Some bytes now and then, by the end all there is.
            most = 700 if step < 60 else 1 << 20
            for number, sock in enumerate(readers):
                if got[number] == sent[number]:
                    continue
                sock.settimeout(30)
                data = sock.recv(most)
                if not data or data != stream(got[number], len(data)):
                    raise Wrong(f"other bytes than were sent, or the end, behind {got[number]}")
                got[number] += len(data)
            time.sleep(0.05 if step < 60 else 0)
        while got != sent:
            for number, sock in enumerate(readers):
                if got[number] < sent[number]:
                    data = sock.recv(1 << 20)
                    if not data or data != stream(got[number], len(data)):
                        raise Wrong(f"other bytes than were sent behind {got[number]}")
                    got[number] += len(data)
        return f"connections={count} bytes={sum(sent)} slowest_other_ms={slowest * 1000:.0f}"

    def many(self, count="1000"):
        """Open at once, and each is answered, twice."""
        count = int(count)
        resource.setrlimit(resource.RLIMIT_NOFILE, (count + 64, count + 64))
        start = time.monotonic()
        socks = [self.connect() for _ in range(count)]
        opened = time.monotonic() - start
        for turn in range(2):
            for number, sock in enumerate(socks):
                sock.sendall(f"{turn} {number:6}\n".encode())
            for number, sock in enumerate(socks):
                wanted = f"{turn} {number:6}\n".encode()
                back = receive(sock, len(wanted))
                if back != wanted:
                    raise Wrong(f"connection {number} got {back!r} for {wanted!r}")
        seconds = time.monotonic() - start
        return f"connections={count} open_s={opened:.1f} seconds={seconds:.1f}"

    def udp(self):
        """Datagrams, in fragments where they are long."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(self.address)
        sock.settimeout(3)
        lost = 0
        sizes = [0, 1, 1472, 1473, 8000, 60_000]
        for size in sizes:
            data = stream(size, size)
            for attempt in range(4):
                sock.send(data)
                try:
                    back = sock.recv(65_535)
                except TimeoutError:
                    lost += 1
                    continue
                if back != data:
                    raise Wrong(f"{len(back)} bytes came back for {size}, or others")
                break
            else:
                raise Wrong(f"a datagram of {size} bytes was lost four times")
        return f"datagrams={len(sizes)} lost={lost}"

    def across(self, command):
        """A connection goes on after a command that disturbs it."""
        sock = self.connect(timeout=60)
        self.round(sock, REQUEST)
        # Some is under way meanwhile.
        sock.sendall(stream(0, 100_000))
        subprocess.run(command, shell=True, check=True, timeout=60, stdout=subprocess.DEVNULL)
        start = time.monotonic()
        back = receive(sock, 100_000)
        if back != stream(0, 100_000):
            raise Wrong(f"{len(back)} bytes of 100000 came back, or others")
        self.round(sock, REQUEST)
        return f"after_s={time.monotonic() - start:.1f}"


def pieces(length):
    at = 0
    while at < length:
        step = min(1 << 20, length - at)
        yield stream(at, step)
        at += step


def finish(sock, length):
    for piece in pieces(length):
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)


def receive(sock, length):
    """So many bytes, or fewer if the other side closes."""
    parts = []
    while length > 0 and (data := sock.recv(min(length, 1 << 18))):
        parts.append(data)
        length -= len(data)
    return b"".join(parts)


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def run_all(jobs):
    """Runs jobs at once; the first failure is everybody's."""
    failed = []

    def guarded(job):
        try:
            job()
        except Exception as error:  # Told below.
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=[job], daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not failed:
        select.select([], [], [], 0.02)
    if failed:
        raise failed[0]


def main():
    host, port, check, *arguments = sys.argv[1:]
    try:
        print(getattr(Client(host, int(port)), check)(*arguments))
    except (Wrong, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"{check}: {type(error).__name__}: {error}")


main()
