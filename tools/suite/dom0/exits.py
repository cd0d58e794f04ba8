"""Counts what a trace of Xen's has of hardware guests (public/trace.h).

    exits.py FILE       prints: VM exits, injected interrupts, and lost records
"""

import struct
import sys

TRC_HVM_VMEXIT = 0x00081002
TRC_HVM_INJ_VIRQ = 0x00082004
TRC_64_FLAG = 0x100
TRC_LOST_RECORDS = 0x0001F001


def main():
    with open(sys.argv[1], "rb") as f:
        data = f.read()
    at, exits, injected, lost = 0, 0, 0, 0
    while at + 4 <= len(data):
        (header,) = struct.unpack_from("<I", data, at)
        # struct t_rec: event in bits 27:0, number of extra words in 30:28, a TSC if bit 31 is set.
        event, extra, tsc = header & 0x0FFFFFFF, header >> 28 & 7, header >> 31
        at += 4 + 8 * tsc + 4 * extra
        if event & ~TRC_64_FLAG == TRC_HVM_VMEXIT:
            exits += 1
        elif event == TRC_HVM_INJ_VIRQ:
            injected += 1
        elif event == TRC_LOST_RECORDS:
            lost += 1
    print(exits, injected, lost)


main()
