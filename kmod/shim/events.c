// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What happens to memory and CPUs, normalised. No notifier ever fails an event.
 */
#include <linux/cpuhotplug.h>
#include <linux/kernel.h>
#include <linux/memory.h>
#include <linux/mm.h>
#include <linux/notifier.h>

#include "shim.h"

/*
 * MEM_* were flags up to 6.12 and are an enumeration later; some are new. Those without a line here do not change what a
 * dump must hold.
 */
static int what_happens(unsigned long action)
{
	switch (action) {
	case MEM_GOING_ONLINE:
		return HD_MEMORY_COMES;
	case MEM_ONLINE:
		return HD_MEMORY_CAME;
	case MEM_CANCEL_ONLINE:
	case MEM_OFFLINE:
		return HD_MEMORY_GONE;
	case MEM_CANCEL_OFFLINE:
		return HD_MEMORY_STAYS;
	default:
		return -1;
	}
}

/*
 * What was said last to be about to be used. A crash image has it since then, and one that is armed later too: that it is used
 * now is no news. Guarded by the lock of memory hotplug, which is held while notifiers run.
 */
static struct {
	u64 first;
	u64 past;
} coming;

/* The same as long as the kernel runs; on pseries 6.1 looks it up in the device tree each time. */
static u64 block_size;

/*
 * Of a block whose page structures lie in the block itself, the kernel names only the other pages. A dump needs all: a
 * block counts as a whole.
 */
static int memory_event(struct notifier_block *block, unsigned long action, void *data)
{
	const struct memory_notify *notify = data;
	const int what = what_happens(action);
	u64 first, past;

	if (what < 0)
		return NOTIFY_DONE;
	first = round_down(PFN_PHYS(notify->start_pfn), block_size);
	past = round_up(PFN_PHYS(notify->start_pfn + notify->nr_pages), block_size);
	if (what == HD_MEMORY_CAME && first == coming.first && past == coming.past)
		return NOTIFY_DONE;
	if (what == HD_MEMORY_COMES) {
		coming.first = first;
		coming.past = past;
	}
	hd_let_go(hd_core_memory(what, first, past));
	return NOTIFY_DONE;
}

static struct notifier_block memory_block = { .notifier_call = memory_event };

static int cpu_event(unsigned int cpu)
{
	hd_let_go(hd_core_cpu(cpu));
	return 0;
}

static int cpu_state = -1;

int hd_follow(void)
{
	int error = 0;

	block_size = memory_block_size_bytes();
	if (HOTDUMP_MEMORY)
		error = register_memory_notifier(&memory_block);
	if (error || !HOTDUMP_CPUS)
		return error;
	/* The section that runs before the new CPU does, on the one that brings it up. */
	cpu_state = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, "hotdump:prepare", cpu_event, NULL);
	if (cpu_state < 0) {
		hd_unfollow();
		return cpu_state;
	}
	return 0;
}

void hd_unfollow(void)
{
	if (cpu_state >= 0)
		cpuhp_remove_state_nocalls(cpu_state);
	if (HOTDUMP_MEMORY)
		unregister_memory_notifier(&memory_block);
}
