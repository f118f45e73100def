"""Reads a dump with drgn and prints as JSON what it finds: judge.py VMLINUX DUMP.

The panicking thread's stack; every task, its stack's memory and its trace; every allocated object of every slab. What cannot be
read is counted as unreadable. Digests are of all that was read, so that equal ones mean equal dumps.
"""

import hashlib
import json
import sys

from drgn import FaultError, Program, cast
from drgn.helpers import ValidationError
from drgn.helpers.linux.mm import PageSlab, for_each_page
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import _get_slab_cache_helper, for_each_slab_cache

# The first few of what could not be read.
missed = []


def miss(what, error):
    if len(missed) < 20:
        missed.append(f"{what}: {error}")


def names(trace):
    return [frame.name or hex(frame.pc) for frame in trace]


def panic(prog):
    thread = prog.crashed_thread()
    task = thread.object
    return {"pid": task.pid.value_(), "comm": task.comm.string_().decode(), "stack": names(thread.stack_trace())}


def size_of_stacks(prog):
    """The linker gives the first task's stack the size of all others."""
    for what in ["stack", "task"]:
        try:
            return prog.symbol(f"__end_init_{what}").address - prog.symbol(f"__start_init_{what}").address
        except LookupError:
            pass
    raise LookupError("how large are stacks?")


def tasks(prog):
    memory, traces, count, frames, unreadable = hashlib.sha256(), hashlib.sha256(), 0, 0, 0
    stack_size = size_of_stacks(prog)
    for task in for_each_task(prog):
        count += 1
        pid = task.pid.value_()
        try:
            memory.update(task[0].to_bytes_())
            # A task that has ended may have given its stack back.
            if task.stack:
                memory.update(prog.read(task.stack.value_(), stack_size))
                trace = names(prog.stack_trace(task))
                frames += len(trace)
                traces.update(repr((pid, task.comm.string_(), trace)).encode())
        except (FaultError, ValueError) as error:
            unreadable += 1
            miss(f"task {pid}", error)
    return {
        "count": count,
        "unreadable": unreadable,
        "memory": memory.hexdigest(),
        "frames": frames,
        "traces": traces.hexdigest(),
    }


def slabs(prog):
    caches = {cache.value_(): _get_slab_cache_helper(cache) for cache in for_each_slab_cache(prog)}
    sizes = {address: helper._slab_cache.object_size.value_() for address, helper in caches.items()}
    digest, pages, objects, size, unreadable = hashlib.sha256(), 0, 0, 0, 0
    for helper in caches.values():
        # SLUB's objects that are free and on no slab's own list, as drgn itself finds them before it goes through a cache's slabs.
        if hasattr(helper, "_per_cpu_info"):
            helper._cache_free_objects = set()
            try:
                helper._cache_free_objects = helper._sheaves_full_objects() | helper._per_cpu_info().free_objects
            except (FaultError, ValidationError) as error:
                unreadable += 1
                miss("free objects", error)
    slab_type, pointer = prog.type("struct slab *"), prog.pointer_type(prog.type("void"))
    # A machine has holes in its memory, whose structures are not there; a raw dump has as many.
    for page in for_each_page(prog):
        try:
            if not PageSlab(page):
                continue
        except FaultError:
            continue
        pages += 1
        cache = None
        try:
            slab = cast(slab_type, page)
            cache = slab.slab_cache.value_()
            helper = caches.get(cache)
            if helper is None:
                # A large object of kmalloc's, or a cache just made.
                continue
            for object in helper._page_objects(page, slab, pointer):
                objects += 1
                try:
                    digest.update(prog.read(object.value_(), sizes[cache]))
                    size += sizes[cache]
                except FaultError as error:
                    unreadable += 1
                    miss("object", error)
        except (FaultError, ValidationError, ValueError) as error:
            unreadable += 1
            miss(f"slab {page.value_():#x}", error)
    return {
        "caches": len(caches),
        "pages": pages,
        "objects": objects,
        "bytes": size,
        "unreadable": unreadable,
        "digest": digest.hexdigest(),
    }


def main(vmlinux, dump):
    prog = Program()
    prog.set_core_dump(dump)
    prog.load_debug_info([vmlinux])
    found = {}
    for name, look in [("panic", panic), ("tasks", tasks), ("slab", slabs)]:
        try:
            found[name] = look(prog)
        except (FaultError, LookupError, ValueError) as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
    found["missed"] = missed
    print(json.dumps(found))


main(*sys.argv[1:])
