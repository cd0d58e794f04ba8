#!/usr/bin/env python3
"""What an upgrade service has to stand. Runs in dom0.

    hostile.py ADDRESS PORT ATTACK

Each attack ends when the service has got rid of it; prints one line.
"""

import random
import socket
import sys
import time

# How long the service may put up with somebody who says nothing that counts.
LIMIT = 40

OPENING = b"SEGUEUPG\x01\x00\x01\x00"


def frame(data):
    return len(data).to_bytes(4, "little") + data


def connect(address):
    sock = socket.socket()
    sock.settimeout(LIMIT)
    sock.connect(address)
    return sock


def until_closed(sock):
    """Reads until the service closes; true if it does."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def garbage(address):
    """Bytes that mean nothing, at each place of a conversation."""
    chance = random.Random(5)
    bad = [
        b"",
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SEGUEUPG\xff\xff\x00\x00",
        b"SEGUEUPG\x09\x00\x0a\x00",
        OPENING + b"\xff\xff\xff\xff" + b"x" * 100_000,
        OPENING + frame(b""),
        OPENING + frame(b"\x07" * 400),
        OPENING + frame(b"\x00") * 2000,
        # Data that nobody asked for.
        OPENING + frame(b"\x02\x00" + b"\xff\x7f" + b"y" * 400),
    ]
    bad += [chance.randbytes(chance.randrange(1, 5000)) for _ in range(15)]
    bad += [OPENING + frame(chance.randbytes(chance.randrange(1, 500))) for _ in range(25)]
    for number, data in enumerate(bad):
        sock = connect(address)
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It has had enough already.
        if not until_closed(sock):
            sys.exit(f"it keeps connection {number}, which sent {data[:40]!r}")
    return f"connections={len(bad)}"


def slow(address):
    """A byte a second, for ever; a header that does not end."""
    socks = [connect(address) for _ in range(6)]
    text = OPENING + frame(b"\x01" + b"z" * 400)
    start = time.monotonic()
    at, closed = 0, set()
    while len(closed) < len(socks):
        if time.monotonic() - start > LIMIT:
            sys.exit(f"it keeps {len(socks) - len(closed)} connections that send a byte a second")
        for sock in socks:
            if sock in closed:
                continue
            sock.settimeout(0.01)
            try:
                sock.send(text[at : at + 1])
                while True:
                    if not sock.recv(65536):
                        closed.add(sock)
                        break
            except TimeoutError:
                pass
            except OSError:
                closed.add(sock)
        at = (at + 1) % len(text)
        time.sleep(1)
    return f"closed_after_s={time.monotonic() - start:.0f}"


def parallel(address):
    """Many connections at once that say nothing."""
    socks, refused = [], 0
    for _ in range(300):
        sock = socket.socket()
        sock.settimeout(3)
        try:
            sock.connect(address)
            socks.append(sock)
        except OSError:
            refused += 1
    start = time.monotonic()
    for sock in socks:
        sock.settimeout(max(1, LIMIT - (time.monotonic() - start)))
        if not until_closed(sock):
            sys.exit("it keeps connections that say nothing")
    return f"connections={len(socks)} refused={refused} closed_after_s={time.monotonic() - start:.0f}"


def main():
    address, port, attack = sys.argv[1:]
    print(attack, {"garbage": garbage, "slow": slow, "parallel": parallel}[attack]((address, int(port))))


main()
