// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Crash images: whether there is one, and when somebody replaces it.
 *
 * Both system calls, to load and to unload, unprotect the reservation before they free the image in it, and protect it
 * again when a new one is in place, all under the kexec lock (do_kexec_load and kexec_file_load, the same from 5.10 to
 * 7.2). Nothing else calls these two functions but the kernel's own crash-hotplug handler, which changes no image of
 * ours, and the dm-crypt keys of 6.16 on: to let go there is needless, but safe.
 *
 * They are watched by ftrace and not by kprobes: the latter are switched off as a whole by debugfs' kprobes/enabled or
 * kernel.ftrace_enabled, without a word to their owners. What is permanent to ftrace knows no such switch, and
 * kernel.ftrace_enabled=0 is refused while it is there. What remains is an ftrace that gives up over a fault of its own;
 * it warns. Then the core's looks at each event are left: is any image loaded, does ours carry its identity, are the
 * bytes in it those last written.
 *
 * Suspend and hibernation need no hook. The one keeps all memory; the other saves and restores the reservation, which
 * is RAM like any other to it, in one with the shadow and the list of memory that belong to it.
 */
#include <linux/ftrace.h>
#include <linux/kexec.h>
#include <linux/string.h>
#include <linux/version.h>

#include "shim.h"

#ifdef CONFIG_DYNAMIC_FTRACE

#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
#define ftrace_regs pt_regs
#endif

/* Whatever lock the caller holds, the core's is taken inside it, and holds nothing that could wait for the caller. */
static void notrace before_unprotect(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
				     struct ftrace_regs *regs)
{
	hd_let_go(hd_core_disarm(HOTDUMP_REASON_OTHER_LOAD));
}

static void notrace before_protect(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
				   struct ftrace_regs *regs)
{
	hd_let_go(hd_core_loaded());
}

static struct ftrace_ops unprotect_ops = { .func = before_unprotect, .flags = FTRACE_OPS_FL_PERMANENT };
static struct ftrace_ops protect_ops = { .func = before_protect, .flags = FTRACE_OPS_FL_PERMANENT };

static void unwatch(struct ftrace_ops *ops)
{
	unregister_ftrace_function(ops);
	ftrace_set_filter(ops, NULL, 0, 1);
}

static int watch(struct ftrace_ops *ops, const char *name)
{
	/* ftrace takes the text apart in place. */
	char copy[64];
	int error;

	strscpy(copy, name, sizeof(copy));
	error = ftrace_set_filter(ops, (unsigned char *)copy, strlen(copy), 1);
	if (error)
		return error;
	error = register_ftrace_function(ops);
	if (error)
		ftrace_set_filter(ops, NULL, 0, 1);
	return error;
}

static bool is_hooked;

int hd_hook(void)
{
	int error = watch(&unprotect_ops, "arch_kexec_unprotect_crashkres");

	if (error)
		return error;
	error = watch(&protect_ops, "arch_kexec_protect_crashkres");
	if (error)
		unwatch(&unprotect_ops);
	is_hooked = !error;
	return error;
}

void hd_unhook(void)
{
	if (!is_hooked)
		return;
	unwatch(&protect_ops);
	unwatch(&unprotect_ops);
	is_hooked = false;
}

bool hd_hooked(void)
{
	return is_hooked;
}

#else

int hd_hook(void)
{
	return -EOPNOTSUPP;
}

void hd_unhook(void)
{
}

bool hd_hooked(void)
{
	return false;
}

#endif

u32 hd_image_loaded(void)
{
	return kexec_crash_loaded() != 0;
}
