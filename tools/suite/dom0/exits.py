"""Counts what a trace of Xen's has of a hardware guest, and of dom0 beside it (public/trace.h).

    exits.py FILE       prints one line of JSON
"""

import json
import struct
import sys

TRC_LOST_RECORDS = 0x0001F001
TRC_HVM_VMEXIT = 0x00081002
TRC_HVM_INJ_VIRQ = 0x00082004
TRC_HVM_VMMCALL = 0x00082012
TRC_PV_HYPERCALL_V2 = 0x0020100D
TRC_PV_HYPERCALL_SUBCALL = 0x0020200E
TRC_64_FLAG = 0x100

# public/xen.h, public/grant_table.h
GRANT_TABLE_OP, EVENT_CHANNEL_OP = 20, 32
GNTTABOP_MAP, GNTTABOP_COPY = 0, 5


def main():
    with open(sys.argv[1], "rb") as f:
        data = f.read()
    at = 0
    count = dict.fromkeys(
        ["exits", "injected", "hypercalls", "events_out", "events_in", "copies", "maps", "lost"], 0
    )
    while at + 4 <= len(data):
        (header,) = struct.unpack_from("<I", data, at)
        # struct t_rec: event in bits 27:0, number of extra words in 30:28, a TSC if bit 31 is set.
        event, extra, tsc = header & 0x0FFFFFFF, header >> 28 & 7, header >> 31
        at += 4 + 8 * tsc
        if at + 4 * extra > len(data):
            break
        words = struct.unpack_from(f"<{extra}I", data, at)
        at += 4 * extra
        if event & ~TRC_64_FLAG == TRC_HVM_VMEXIT:
            count["exits"] += 1
        elif event == TRC_HVM_INJ_VIRQ:
            count["injected"] += 1
        elif event == TRC_HVM_VMMCALL:
            count["hypercalls"] += 1
            count["events_out"] += words[0] == EVENT_CHANNEL_OP
        elif event in (TRC_PV_HYPERCALL_V2, TRC_PV_HYPERCALL_SUBCALL):
            # Of dom0: the number in bits 19:0, then what is known of its arguments.
            number = words[0] & 0xFFFFF
            count["events_in"] += number == EVENT_CHANNEL_OP
            if number == GRANT_TABLE_OP and extra >= 3:
                what, times = words[1], words[2]
                count["copies"] += times if what == GNTTABOP_COPY else 0
                count["maps"] += times if what == GNTTABOP_MAP else 0
        elif event == TRC_LOST_RECORDS:
            count["lost"] += 1
    print(json.dumps(count))


main()
