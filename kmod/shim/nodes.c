// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * /sys/devices/system/{cpu,memory}/crash_hotplug on kernels that lack them. Distributions' udev rules read 1 as "the crash
 * image follows by itself" and skip their reload.
 */
#include <linux/cpu.h>
#include <linux/device.h>
#include <linux/kernfs.h>
#include <linux/sysfs.h>
#include <linux/version.h>

#include "shim.h"

#ifdef CONFIG_CRASH_HOTPLUG

void hd_add_nodes(void)
{
}

void hd_remove_nodes(void)
{
}

#else

static ssize_t cpu_show(struct device *device, struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", !!(hd_core_follows() & HOTDUMP_FOLLOW_CPUS));
}

static ssize_t memory_show(struct device *device, struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", !!(hd_core_follows() & HOTDUMP_FOLLOW_MEMORY));
}

static struct device_attribute cpu_node = { .attr = { .name = "crash_hotplug", .mode = 0444 }, .show = cpu_show };
static struct device_attribute memory_node = { .attr = { .name = "crash_hotplug", .mode = 0444 }, .show = memory_show };

static struct kobject *cpu_root;
static struct kobject *memory_root;

static struct kobject *find_cpu_root(void)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	struct device *root = bus_get_dev_root(&cpu_subsys);

	return root ? &root->kobj : NULL;
#else
	return cpu_subsys.dev_root ? kobject_get(&cpu_subsys.dev_root->kobj) : NULL;
#endif
}

/* memory_subsys is not exported; its root stands beside the CPUs' in sysfs. */
static struct kobject *find_memory_root(struct kobject *beside)
{
	struct kobject *found = NULL;
	struct kernfs_node *node;

	if (!beside->parent)
		return NULL;
	node = kernfs_find_and_get(beside->parent->sd, "memory");
	if (node && kernfs_type(node) == KERNFS_DIR)
		found = kobject_get(node->priv);
	kernfs_put(node);
	return found;
}

static bool add(struct kobject *root, const struct device_attribute *node, bool wanted)
{
	if (!root || !wanted)
		return false;
	if (sysfs_create_file(root, &node->attr) == 0)
		return true;
	pr_warn("hotdump: cannot add %s to %s\n", node->attr.name, kobject_name(root));
	return false;
}

void hd_add_nodes(void)
{
	struct kobject *cpu = find_cpu_root();
	struct kobject *memory = cpu ? find_memory_root(cpu) : NULL;

	if (add(cpu, &cpu_node, HOTDUMP_CPUS))
		cpu_root = cpu;
	else
		kobject_put(cpu);
	if (add(memory, &memory_node, HOTDUMP_MEMORY))
		memory_root = memory;
	else
		kobject_put(memory);
}

void hd_remove_nodes(void)
{
	if (memory_root)
		sysfs_remove_file(memory_root, &memory_node.attr);
	if (cpu_root)
		sysfs_remove_file(cpu_root, &cpu_node.attr);
	kobject_put(memory_root);
	kobject_put(cpu_root);
}

#endif
