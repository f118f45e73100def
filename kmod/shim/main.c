// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * hotdump.ko: keeps the crash header of a loaded crash image true while CPUs and memory come and go.
 *
 * This file: the module, its device, its parameters. The decisions are in the core (kmod/core).
 */
#include <linux/capability.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/kobject.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "shim.h"

/* Guards what sleeps: arming, reading, freeing. Events and kexec's own paths never take it. */
static DEFINE_MUTEX(slow_mutex);

bool hd_memory = HOTDUMP_MEMORY;
bool hd_cpus_too = HOTDUMP_CPUS;

/* A switch turned off lets go of what it is for; turned on, it counts from the next arming on. */
static int set_switch(const char *value, const struct kernel_param *param)
{
	int error;

	mutex_lock(&slow_mutex);
	error = param_set_bool(value, param);
	if (!error && !*(bool *)param->arg)
		hd_let_go(hd_core_unfollow(param->arg == &hd_memory ? HOTDUMP_FOLLOW_MEMORY : HOTDUMP_FOLLOW_CPUS));
	mutex_unlock(&slow_mutex);
	return error;
}

static const struct kernel_param_ops switch_ops = { .set = set_switch, .get = param_get_bool };

#if HOTDUMP_MEMORY
module_param_cb(memory, &switch_ops, &hd_memory, 0644);
MODULE_PARM_DESC(memory, "follow memory");
#endif
#if HOTDUMP_CPUS
module_param_cb(cpus, &switch_ops, &hd_cpus_too, 0644);
MODULE_PARM_DESC(cpus, "follow CPUs");
#endif

/* Only with this can a test be in the middle of a change: it panics after that many more stores. */
u32 hd_panic_after_store;
module_param_named(panic_after_store, hd_panic_after_store, uint, 0600);
MODULE_PARM_DESC(panic_after_store, "debugging: panic after this many stores to the crash header (0: never)");

void hd_stored(void)
{
	if (hd_panic_after_store && --hd_panic_after_store == 0)
		panic("hotdump: as many stores as panic_after_store asked for");
}

static void drop(struct work_struct *work)
{
	mutex_lock(&slow_mutex);
	hd_core_drop();
	mutex_unlock(&slow_mutex);
}

static DECLARE_WORK(drop_work, drop);

void hd_let_go(u32 is_over)
{
	if (is_over)
		schedule_work(&drop_work);
}

static struct miscdevice device;
/* Guarded by slow_mutex: whether the device is there, for uevents to come from. */
static bool has_device;

/* Tells user space, which can load again at once where it has to. Under slow_mutex. */
static void tell(char *state, u32 reason, u32 is_stale)
{
	char reason_text[32], stale_text[32];
	char *variables[] = { state, reason_text, stale_text, NULL };

	snprintf(reason_text, sizeof(reason_text), HOTDUMP_UEVENT_REASON "=%u", reason);
	snprintf(stale_text, sizeof(stale_text), HOTDUMP_UEVENT_STALE "=%u", is_stale);
	if (has_device)
		kobject_uevent_env(&device.this_device->kobj, KOBJ_CHANGE, variables);
}

void hd_gone(u32 reason, u32 is_stale, const u8 *text, u64 size)
{
	pr_info_ratelimited("hotdump: follows the crash image no longer: %.*s\n", (int)size, text);
	tell(HOTDUMP_UEVENT_STATE "=" HOTDUMP_UEVENT_DISARMED, reason, is_stale);
}

static void say_armed(const struct hotdump_arm *request)
{
	static const char *const names[] = {
		[0] = "nothing any more",
		[HOTDUMP_FOLLOW_MEMORY] = "memory",
		[HOTDUMP_FOLLOW_CPUS] = "CPUs",
		[HOTDUMP_FOLLOW_MEMORY | HOTDUMP_FOLLOW_CPUS] = "memory and CPUs",
	};
	struct hotdump_status now = {};

	hd_core_status(&now);
	pr_info_ratelimited("hotdump: follows %s in the crash header at %#llx, %u of %u entries free\n",
			    names[request->follow], request->header.start, now.free_slots,
			    now.free_slots + now.used_slots);
	tell(HOTDUMP_UEVENT_STATE "=" HOTDUMP_UEVENT_ARMED, HOTDUMP_REASON_NONE, 0);
}

static u32 wanted(void)
{
	return (hd_memory ? HOTDUMP_FOLLOW_MEMORY : 0) | (hd_cpus_too ? HOTDUMP_FOLLOW_CPUS : 0);
}

static int arm(struct hotdump_arm __user *user, u64 loads_before)
{
	struct hotdump_arm *request = memdup_user(user, sizeof(*request));
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	request->reason = 0;
	request->found = 0;
	if (security_locked_down(LOCKDOWN_KEXEC)) {
		request->reason = HOTDUMP_REASON_LOCKDOWN;
		error = -EPERM;
	} else if (!hd_hooked()) {
		request->reason = HOTDUMP_REASON_NO_HOOK;
		error = -EOPNOTSUPP;
	} else {
		mutex_lock(&slow_mutex);
		error = hd_core_arm(request, wanted(), loads_before);
		if (!error)
			say_armed(request);
		mutex_unlock(&slow_mutex);
	}
	if (copy_to_user(user, request, sizeof(*request)) && !error) {
		/* The loader does not learn that it worked. */
		hd_let_go(hd_core_disarm(HOTDUMP_REASON_ASKED));
		error = -EFAULT;
	}
	kfree(request);
	return error;
}

static int status(struct hotdump_status __user *user)
{
	struct hotdump_status answer = {};

	hd_core_status(&answer);
	return copy_to_user(user, &answer, sizeof(answer)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	switch (command) {
	case HOTDUMP_ARM:
		return arm((void __user *)argument, (unsigned long)file->private_data);
	case HOTDUMP_DISARM:
		hd_let_go(hd_core_disarm(HOTDUMP_REASON_ASKED));
		flush_work(&drop_work);
		return 0;
	case HOTDUMP_STATUS:
		return status((void __user *)argument);
	default:
		return -ENOTTY;
	}
}

/* Who is to load and then to arm opens the device first: a file remembers how many loads there were until then. */
static int device_open(struct inode *inode, struct file *file)
{
	if (!capable(CAP_SYS_BOOT))
		return -EPERM;
	file->private_data = (void *)(unsigned long)hd_core_loads();
	return nonseekable_open(inode, file);
}

static ssize_t device_read(struct file *file, char __user *to, size_t size, loff_t *offset)
{
	u8 *page = (u8 *)__get_free_page(GFP_KERNEL);
	s64 got;

	if (!page)
		return -ENOMEM;
	mutex_lock(&slow_mutex);
	got = hd_core_read(*offset, page, min_t(size_t, size, PAGE_SIZE));
	mutex_unlock(&slow_mutex);
	if (got > 0) {
		if (copy_to_user(to, page, got))
			got = -EFAULT;
		else
			*offset += got;
	}
	free_page((unsigned long)page);
	return got;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.read = device_read,
	.unlocked_ioctl = device_ioctl,
};

/*
 * What is followed, whatever handler the kernel has. crash_hotplug speaks of the kernel's own one where there is one, and says
 * 0 while an image is followed by us: udev rules that load again would then do so at each event.
 */
static ssize_t follows_memory_show(struct device *node, struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", !!(hd_core_follows() & HOTDUMP_FOLLOW_MEMORY));
}
static DEVICE_ATTR_RO(follows_memory);

static ssize_t follows_cpus_show(struct device *node, struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%d\n", !!(hd_core_follows() & HOTDUMP_FOLLOW_CPUS));
}
static DEVICE_ATTR_RO(follows_cpus);

static struct attribute *device_attrs[] = { &dev_attr_follows_memory.attr, &dev_attr_follows_cpus.attr, NULL };
ATTRIBUTE_GROUPS(device);

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "hotdump",
	.fops = &device_operations,
	.groups = device_groups,
	.mode = 0600,
};

static int __init hotdump_init(void)
{
	int error = hd_hook();

	if (error)
		pr_warn("hotdump: loads of other programs cannot be seen (%d): no image can be armed\n", error);
	error = hd_follow();
	if (error)
		goto unhook;
	mutex_lock(&slow_mutex);
	error = misc_register(&device);
	has_device = !error;
	mutex_unlock(&slow_mutex);
	if (error)
		goto unfollow;
	hd_add_nodes();
	return 0;
unfollow:
	hd_unfollow();
unhook:
	hd_unhook();
	return error;
}

static void __exit hotdump_exit(void)
{
	hd_remove_nodes();
	/* Nobody has the device open, or the module could not go: nobody arms. User space is told while there is a device. */
	hd_let_go(hd_core_disarm(HOTDUMP_REASON_UNLOADING));
	flush_work(&drop_work);
	mutex_lock(&slow_mutex);
	has_device = false;
	mutex_unlock(&slow_mutex);
	misc_deregister(&device);
	hd_unfollow();
	hd_unhook();
	/* Nobody is left who could arm, let go or read. */
	cancel_work_sync(&drop_work);
	hd_core_drop();
	hd_forget_nodes();
}

module_init(hotdump_init);
module_exit(hotdump_exit);

MODULE_DESCRIPTION("keeps the crash dump's description of the machine true");
MODULE_AUTHOR("the hotdump authors");
MODULE_LICENSE("Dual MIT/GPL");
