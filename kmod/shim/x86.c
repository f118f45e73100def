// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What is different on x86_64. powerpc.c has the same, and more for the device tree.
 */
#include <linux/ftrace.h>
#include <linux/ioport.h>

#include "shim.h"

/*
 * Both system calls, to load and to unload, unprotect the reservation before they free the image in it, and protect it
 * again when a new one is in place, all under the kexec lock (do_kexec_load and kexec_file_load, the same from 5.10 to
 * 7.2). Nothing else calls these two functions but the kernel's own crash-hotplug handler, which changes no image of
 * ours, and the dm-crypt keys of 6.16 on: to let go there is needless, but safe.
 */
const char *const hd_before_change = "arch_kexec_unprotect_crashkres";
const char *const hd_after_load = "arch_kexec_protect_crashkres";
const unsigned long hd_watch_flags;

bool hd_is_of_crash(struct ftrace_regs *regs)
{
	return true;
}

struct place {
	u64 start;
	u64 end;
	bool found;
};

static int holds(struct resource *reservation, void *data)
{
	struct place *place = data;

	place->found |= reservation->start <= place->start && place->end - 1 <= reservation->end;
	return 0;
}

void hd_forget_nodes(void)
{
}

u32 hd_in_reservation(u64 start, u64 end)
{
	struct place place = { .start = start, .end = end };

	if (start >= end)
		return 0;
	walk_iomem_res_desc(IORES_DESC_CRASH_KERNEL, IORESOURCE_MEM | IORESOURCE_BUSY, 0, -1, &place, holds);
	return place.found;
}
