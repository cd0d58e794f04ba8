"""Sends to or receives from a TCP server for a while; prints bytes per second.

    bulk.py in|out ADDRESS SECONDS      `in` is towards the server: its discard port (9);
                                        `out` is from its chargen port (19)
"""

import socket
import sys
import time

BLOCK = 256 * 1024


def main():
    direction, address, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    port = {"in": 9, "out": 19}[direction]
    block = bytearray(BLOCK)
    moved = 0
    with socket.create_connection((address, port), timeout=30) as s:
        begin = time.monotonic()
        end = begin + seconds
        if direction == "in":
            while time.monotonic() < end:
                moved += s.send(block)
            # It closes when it has everything.
            s.shutdown(socket.SHUT_WR)
            if s.recv(1):
                sys.exit("the discard port sent something")
        else:
            while time.monotonic() < end:
                n = s.recv_into(block)
                if n == 0:
                    sys.exit("the chargen port closed")
                moved += n
        print(int(moved / (time.monotonic() - begin)))


main()
