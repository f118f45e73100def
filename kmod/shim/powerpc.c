// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What is different on 64-bit PowerPC. x86.c has the same, but for the device tree.
 */
#include <linux/ftrace.h>
#include <linux/kexec.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/of.h>
#include <linux/overflow.h>
#include <linux/ptrace.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>

#include "shim.h"

/*
 * There is nothing to unprotect here. machine_kexec_cleanup is called for every image that is freed, before anything can
 * be written over it; kimage_terminate when all of a new one is in place and nothing can fail any more, shortly before it
 * counts as loaded. Both are called for the images of a plain kexec, too, so the image has to be looked at: it is their
 * first argument (kernel/kexec_core.c, the same in 6.1 and 6.12).
 */
const char *const hd_before_change = "machine_kexec_cleanup";
const char *const hd_after_load = "kimage_terminate";
const unsigned long hd_watch_flags = FTRACE_OPS_FL_SAVE_REGS;

bool hd_is_of_crash(struct ftrace_regs *ftrace_regs)
{
	const struct pt_regs *regs = ftrace_get_regs(ftrace_regs);
	const struct kimage *image = regs ? (const struct kimage *)regs->gpr[3] : NULL;

	/* Where it cannot be told, it is. */
	return !image || image->type == KEXEC_TYPE_CRASH;
}

/* The reservation is in no list of resources. */
u32 hd_in_reservation(u64 start, u64 end)
{
	u64 base, size;

	if (start >= end || of_property_read_u64(of_chosen, "linux,crashkernel-base", &base) ||
	    of_property_read_u64(of_chosen, "linux,crashkernel-size", &size))
		return 0;
	return base <= start && end - base <= size;
}

u32 hd_hardware(u32 cpu)
{
	return get_hard_smp_processor_id(cpu);
}

/* Records of nodes. Without room they are only counted. */
struct records {
	u8 *at;
	size_t room;
	size_t size;
};

static void put(struct records *records, const void *bytes, size_t size)
{
	if (records->size + size <= records->room)
		memcpy(records->at + records->size, bytes, size);
	records->size += size;
}

static void record(struct records *records, u32 kind, const char *name, const void *value, size_t size)
{
	const struct hd_record head = { .kind = kind, .name_size = strlen(name), .value_size = size };

	put(records, &head, sizeof(head));
	put(records, name, head.name_size);
	put(records, value, size);
}

/*
 * What lies in the nodes of /cpus is no nodes. The name is a property only in memory: a flattened tree has it in the node.
 */
static void collect(struct records *records)
{
	struct device_node *cpus = of_find_node_by_path("/cpus");
	const struct property *property;
	struct device_node *node;

	records->size = 0;
	for_each_child_of_node(cpus, node) {
		record(records, of_node_is_type(node, "cpu") ? HD_NODE_CPU : HD_NODE_CACHE, kbasename(node->full_name), NULL, 0);
		for_each_property_of_node(node, property)
			if (strcmp(property->name, "name"))
				record(records, HD_PROPERTY, property->name, property->value, property->length);
		record(records, HD_NODE_END, "", NULL, 0);
	}
	of_node_put(cpus);
}

/* Taken inside the locks of CPU hotplug; whoever holds it takes none of them. */
static DEFINE_MUTEX(nodes_mutex);
static struct records nodes;

const u8 *hd_nodes(u64 *size)
{
	mutex_lock(&nodes_mutex);
	collect(&nodes);
	while (nodes.size > nodes.room) {
		/* Nodes may come meanwhile: room for some. */
		const size_t room = nodes.size + nodes.size / 4;

		kvfree(nodes.at);
		nodes.at = kvmalloc(room, GFP_KERNEL);
		nodes.room = nodes.at ? room : 0;
		if (!nodes.at) {
			mutex_unlock(&nodes_mutex);
			return NULL;
		}
		collect(&nodes);
	}
	*size = nodes.size;
	return nodes.at;
}

void hd_nodes_done(void)
{
	mutex_unlock(&nodes_mutex);
}

void hd_forget_nodes(void)
{
	kvfree(nodes.at);
}
