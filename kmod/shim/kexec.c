// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Crash images: whether there is one, and when somebody replaces it.
 *
 * Two functions of the kernel are watched: one that both system calls, to load and to unload, go through before the image
 * that is there can change, and one that they go through when a new one is in place. Each architecture has its own.
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

#include "shim.h"

#ifdef CONFIG_DYNAMIC_FTRACE

/* Whatever lock the caller holds, the core's is taken inside it, and holds nothing that could wait for the caller. */
static void notrace before_change(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
				  struct ftrace_regs *regs)
{
	if (hd_is_of_crash(regs))
		hd_let_go(hd_core_disarm(HOTDUMP_REASON_OTHER_LOAD));
}

static void notrace after_load(unsigned long ip, unsigned long parent, struct ftrace_ops *ops,
			       struct ftrace_regs *regs)
{
	if (hd_is_of_crash(regs))
		hd_let_go(hd_core_loaded());
}

static struct ftrace_ops change_ops = { .func = before_change, .flags = FTRACE_OPS_FL_PERMANENT };
static struct ftrace_ops load_ops = { .func = after_load, .flags = FTRACE_OPS_FL_PERMANENT };

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
	ops->flags |= hd_watch_flags;
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
	int error = watch(&change_ops, hd_before_change);

	if (error)
		return error;
	error = watch(&load_ops, hd_after_load);
	if (error)
		unwatch(&change_ops);
	is_hooked = !error;
	return error;
}

void hd_unhook(void)
{
	if (!is_hooked)
		return;
	unwatch(&load_ops);
	unwatch(&change_ops);
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
