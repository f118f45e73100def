/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Between the files of the shim. */
#ifndef HOTDUMP_SHIM_H
#define HOTDUMP_SHIM_H

#include <linux/version.h>
#include "core.h"

/* What is built in; the Kbuild file passes them. */
#ifndef HOTDUMP_MEMORY
#define HOTDUMP_MEMORY 1
#endif
#ifndef HOTDUMP_CPUS
#define HOTDUMP_CPUS 1
#endif

/* main.c: the switches, and the freeing of what a disarmed image held. */
extern bool hd_memory;
extern bool hd_cpus_too;
void hd_let_go(u32 is_over);

/* events.c: memory and CPUs. */
int hd_follow(void);
void hd_unfollow(void);

/* kexec.c: loads by others. */
int hd_hook(void);
void hd_unhook(void);
bool hd_hooked(void);

/*
 * x86.c, powerpc.c: the functions through which loads and unloads go, flags with which they are watched, and whether a call
 * of one concerns a crash image.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
#define ftrace_regs pt_regs
#endif
struct ftrace_regs;
extern const char *const hd_before_change;
extern const char *const hd_after_load;
extern const unsigned long hd_watch_flags;
bool hd_is_of_crash(struct ftrace_regs *regs);
void hd_forget_nodes(void);

/* nodes.c: crash_hotplug in sysfs. */
void hd_add_nodes(void);
void hd_remove_nodes(void);

#endif
