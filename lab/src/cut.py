"""Reads a kdump-compressed dump that is cut short beside the whole one: cut.py drgn|kdumpfile WHOLE CUT.

It must open, and pages that lie wholly before the cut must read as they do from the whole dump. Nothing is asked of pages beyond it: where
libkdumpfile (which drgn reads by too) has mapped a file, it ends by SIGBUS there, whoever wrote the dump. Before the kernel's page tables are all
there, drgn's libkdumpfile says once that it cannot translate addresses, in place of the first page by its physical address, and goes on: that
page is read again. Prints as JSON how many pages were read, and how often that was so.
"""

import json
import os
import struct
import sys

# How many pages are read, at even distances.
SAMPLES = 300


def pages(dump):
    """Address, place and length of each page of data, in the order of their places."""
    with open(dump, "rb") as file:
        data = file.read()
    block, sub_blocks, bitmap_blocks = struct.unpack_from("<3i", data, 428)
    bitmaps = (1 + sub_blocks) * block
    half = bitmap_blocks * block // 2
    second = data[bitmaps + half : bitmaps + 2 * half]
    at = bitmaps + 2 * half
    found = []
    for number, byte in enumerate(second):
        for bit in range(8):
            if byte >> bit & 1:
                offset, size = struct.unpack_from("<QI", data, at)
                found.append((offset, size, (number * 8 + bit) * block))
                at += 24
    # Pages of zeros share one.
    zero = min(found)[0]
    return block, sorted(page for page in found if page[0] != zero)


def by_drgn(dump):
    from drgn import FaultError, Program

    prog = Program()
    prog.set_core_dump(dump)

    def read(address, size):
        try:
            return prog.read(address, size, physical=True)
        except (FaultError, OSError, ValueError):
            return None

    return read


def by_kdumpfile(dump):
    import kdumpfile
    from kdumpfile.exceptions import KDumpBaseException

    context = kdumpfile.kdumpfile(dump)

    def read(address, size):
        try:
            return context.read(kdumpfile.KDUMP_MACHPHYSADDR, address, size)
        except (KDumpBaseException, OSError, ValueError):
            return None

    return read


def some(all_of_them):
    return all_of_them[:: max(1, len(all_of_them) // SAMPLES)] + all_of_them[-1:]


def main(reader, whole, cut):
    block, found = pages(whole)
    end = os.path.getsize(cut)
    opened = {"drgn": by_drgn, "kdumpfile": by_kdumpfile}[reader]
    of_whole, of_cut = opened(whole), opened(cut)
    told = {"before": 0, "wrong": 0, "untranslated": 0}
    for offset, size, address in some([page for page in found if page[0] + page[1] <= end]):
        told["before"] += 1
        expected = of_whole(address, block)
        page = of_cut(address, block)
        if page is None and told["before"] == 1:
            told["untranslated"] += 1
            page = of_cut(address, block)
        if expected is None or page != expected:
            told["wrong"] += 1
    print(json.dumps(told))


main(*sys.argv[1:])
