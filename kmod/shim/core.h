/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Between the core (Rust, kmod/core) and the shim (C, this folder). The core decides and knows no kernel version; the
 * shim asks the kernel and knows nothing of crash headers. kmod/core/src/ffi.rs has the same declarations.
 */
#ifndef HOTDUMP_CORE_H
#define HOTDUMP_CORE_H

#include <linux/types.h>
#include "abi.h"

/* What happens to memory, the same for all kernels. Ranges are whole memory blocks. */
enum hd_memory {
	HD_MEMORY_COMES = 0,	/* before it is used */
	HD_MEMORY_CAME = 1,	/* may be left out where it comes next */
	HD_MEMORY_GONE = 2,	/* offline, or its onlining failed */
	HD_MEMORY_STAYS = 3,	/* its offlining failed */
};

/* A possible CPU. */
struct hd_cpu {
	u32 cpu;
	u32 present;
	u64 note;		/* physical address of its crash notes */
};

/*
 * The nodes of /cpus, one record after the other: these numbers, then the name, then the value. Nodes begin with a record of
 * the first two kinds and end with one of the last.
 */
enum hd_record_kind {
	HD_NODE_CPU = 0,
	HD_NODE_CACHE = 1,
	HD_PROPERTY = 2,
	HD_NODE_END = 3,
};

struct hd_record {
	u32 kind;
	u32 name_size;
	u32 value_size;
};

/*
 * The core, for the shim. Those of the first group must not run at the same time as each other and may sleep; those
 * of the second may run any time, in any context but NMI, but for hd_core_cpu, which may sleep.
 */
int hd_core_arm(struct hotdump_arm *arm, u32 wanted, u64 loads_before);
void hd_core_drop(void);
s64 hd_core_read(u64 offset, u8 *to, u64 size);

u32 hd_core_disarm(u32 reason);
u32 hd_core_loaded(void);
u64 hd_core_loads(void);
u32 hd_core_memory(u32 what, u64 start, u64 end);
u32 hd_core_cpu(u32 cpu);
u32 hd_core_unfollow(u32 follow);
u32 hd_core_follows(void);
void hd_core_status(struct hotdump_status *status);

/*
 * The shim, for the core. All but the last group may sleep.
 */
void *hd_map(u64 start, u64 size);
void hd_unmap(void *mapped);
void *hd_alloc(u64 size);
void hd_free(void *allocated);
u64 hd_page_size(void);
u32 hd_in_reservation(u64 start, u64 end);
s64 hd_ram(struct hotdump_range *ranges, u64 room);
s64 hd_cpus(struct hd_cpu *cpus, u64 room);
const u8 *hd_nodes(u64 *size);	/* until hd_nodes_done; only where there is a device tree */
void hd_nodes_done(void);
void hd_gone(u32 reason, u32 is_stale, const u8 *text, u64 size);

u32 hd_image_loaded(void);
u64 hd_lock(void);
void hd_unlock(u64 flags);
u64 hd_direct_map(void);
u32 hd_hardware(u32 cpu);	/* only where there is a device tree */
u64 hd_now(void);
u64 hd_time(void);
void hd_stored(void);		/* after each store, while hd_panic_after_store is not 0 */
extern u32 hd_panic_after_store;

#endif
