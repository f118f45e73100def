/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Between the files of the shim. */
#ifndef HOTDUMP_SHIM_H
#define HOTDUMP_SHIM_H

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

/* nodes.c: crash_hotplug in sysfs. */
void hd_add_nodes(void);
void hd_remove_nodes(void);

#endif
