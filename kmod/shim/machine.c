// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The machine as the kernel knows it: memory, CPUs; memory and time for the core.
 */
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/device.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/kprobes.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/timekeeping.h>
#include <linux/vmalloc.h>

#include "shim.h"

/*
 * A load by another program runs into it from ftrace, wherever that is in the kernel: it must not sleep, with
 * PREEMPT_RT either.
 */
static DEFINE_RAW_SPINLOCK(core_lock);

u64 hd_lock(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&core_lock, flags);
	return flags;
}

void hd_unlock(u64 irq_flags)
{
	unsigned long flags = irq_flags;

	raw_spin_unlock_irqrestore(&core_lock, flags);
}

u64 hd_now(void)
{
	return local_clock();
}

u64 hd_time(void)
{
	return ktime_get_real_seconds();
}

void *hd_alloc(u64 size)
{
	return vzalloc(size);
}

void hd_free(void *allocated)
{
	vfree(allocated);
}

/*
 * After a load the direct map of the reservation is read-only on some architectures: a mapping of our own leaves that as
 * it is.
 */
void *hd_map(u64 start, u64 size)
{
	const unsigned long count = PFN_UP(start + size) - PFN_DOWN(start);
	struct page **pages = kvmalloc_array(count, sizeof(*pages), GFP_KERNEL);
	unsigned long i;
	void *mapped;

	if (!pages)
		return NULL;
	for (i = 0; i < count; i++)
		pages[i] = pfn_to_page(PFN_DOWN(start) + i);
	mapped = vmap(pages, count, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	return mapped ? mapped + offset_in_page(start) : NULL;
}

void hd_unmap(void *mapped)
{
	vunmap((void *)((unsigned long)mapped & PAGE_MASK));
}

u64 hd_direct_map(void)
{
	return (u64)(unsigned long)__va(0);
}

u64 hd_page_size(void)
{
	return PAGE_SIZE;
}

struct ranges {
	struct hotdump_range *ranges;
	u64 room;
	u64 count;
	bool open;
};

static void end_range(struct ranges *found, u64 end)
{
	if (found->open && found->count <= found->room)
		found->ranges[found->count - 1].end = end;
	found->open = false;
}

static void begin_range(struct ranges *found, u64 start)
{
	if (found->open)
		return;
	found->open = true;
	if (found->count++ < found->room)
		found->ranges[found->count - 1].start = start;
}

/* Memory that is offline lists as RAM, and may be taken away without another event. */
static int online_parts(struct resource *ram, void *data)
{
	struct ranges *found = data;
	u64 at = ram->start;

	while (at <= ram->end) {
		const u64 next = min_t(u64, round_down(at, 1ULL << SECTION_SIZE_BITS) + (1ULL << SECTION_SIZE_BITS),
				       ram->end + 1);

		if (pfn_to_online_page(PFN_UP(at)))
			begin_range(found, at);
		else
			end_range(found, at);
		at = next;
		cond_resched();
	}
	end_range(found, ram->end + 1);
	return 0;
}

s64 hd_ram(struct hotdump_range *ranges, u64 room)
{
	struct ranges found = { .ranges = ranges, .room = room };

	walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0, -1, &found, online_parts);
	return found.count;
}

/*
 * Where the variable of this name lies. It is not exported, and calling kallsyms_lookup_name by its address traps where
 * unused entry points are sealed (IBT). A probe on a variable is refused, but by then its name is resolved. The core
 * holds what comes of it against what the loader knows.
 */
static void *variable(const char *name)
{
	struct kprobe probe = { .symbol_name = name };

	if (register_kprobe(&probe) == 0) {
		unregister_kprobe(&probe);
		return NULL;
	}
	return probe.addr;
}

static u64 physical(void *address)
{
	struct page *page;

	if (!is_vmalloc_addr(address))
		return virt_to_phys(address);
	page = vmalloc_to_page(address);
	return page ? page_to_phys(page) + offset_in_page(address) : 0;
}

/*
 * Where kallsyms knows functions only: what sysfs tells of a CPU, by its own function. 0 if it does not. page is one to write
 * in.
 */
static u64 note_in_sysfs(unsigned int cpu, char *page)
{
	struct device *device = get_cpu_device(cpu);
	const struct attribute_group **group;
	struct attribute **found;
	u64 note = 0;

	for (group = device ? device->groups : NULL; group && *group; group++)
		for (found = (*group)->attrs; found && *found; found++) {
			struct device_attribute *node = container_of(*found, struct device_attribute, attr);

			if (strcmp(node->attr.name, "crash_notes") || !node->show)
				continue;
			memset(page, 0, PAGE_SIZE);
			if (node->show(device, node, page) <= 0 || kstrtou64(strim(page), 16, &note))
				note = 0;
		}
	return note;
}

s64 hd_cpus(struct hd_cpu *cpus, u64 room)
{
	void *const symbol = variable("crash_notes");
	void __percpu *const notes = symbol ? *(void __percpu **)symbol : NULL;
	char *page = (char *)__get_free_page(GFP_KERNEL);
	unsigned int cpu;
	u64 count = 0;

	if (!page)
		return -ENOMEM;
	for_each_possible_cpu(cpu) {
		if (count < room) {
			cpus[count].cpu = cpu;
			cpus[count].present = cpu_present(cpu);
			cpus[count].note = notes ? physical(per_cpu_ptr(notes, cpu)) : note_in_sysfs(cpu, page);
		}
		count++;
	}
	free_page((unsigned long)page);
	return count;
}
