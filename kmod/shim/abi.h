/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Written by the crate abi: `cargo run -p abi --example c_header`. */
#ifndef HOTDUMP_ABI_H
#define HOTDUMP_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define HOTDUMP_VERSION 3
#define HOTDUMP_FOLLOW_MEMORY 1
#define HOTDUMP_FOLLOW_CPUS 2
#define HOTDUMP_MAX_EXCLUDED 16
#define HOTDUMP_UEVENT_STATE "HOTDUMP"
#define HOTDUMP_UEVENT_ARMED "armed"
#define HOTDUMP_UEVENT_DISARMED "disarmed"
#define HOTDUMP_UEVENT_REASON "HOTDUMP_REASON"
#define HOTDUMP_UEVENT_STALE "HOTDUMP_STALE"
#define HOTDUMP_REASON_NONE 0
#define HOTDUMP_REASON_ASKED 1
#define HOTDUMP_REASON_UNLOADING 2
#define HOTDUMP_REASON_OTHER_LOAD 3
#define HOTDUMP_REASON_CHANGED 4
#define HOTDUMP_REASON_NOT_OURS 5
#define HOTDUMP_REASON_FULL 6
#define HOTDUMP_REASON_UPDATE 7
#define HOTDUMP_REASON_VERSION 8
#define HOTDUMP_REASON_NOT_LOADED 9
#define HOTDUMP_REASON_OUTSIDE_RESERVATION 10
#define HOTDUMP_REASON_MISALIGNED 11
#define HOTDUMP_REASON_OVERLAP 12
#define HOTDUMP_REASON_BAD_HEADER 13
#define HOTDUMP_REASON_ALREADY_ARMED 14
#define HOTDUMP_REASON_NO_MEMORY 15
#define HOTDUMP_REASON_NO_HOOK 16
#define HOTDUMP_REASON_RESTLESS 17
#define HOTDUMP_REASON_BAD_REQUEST 18
#define HOTDUMP_REASON_SWITCHED_OFF 19
#define HOTDUMP_REASON_LOCKDOWN 20
#define HOTDUMP_REASON_NOT_EXCLUDED 21
#define HOTDUMP_REASON_BAD_TREE 22
#define HOTDUMP_REASON_TREE_FULL 23
#ifdef __powerpc__
#define HOTDUMP_ARM 0xc1684801u
#define HOTDUMP_DISARM 0x20004802u
#define HOTDUMP_STATUS 0x40884803u
#else
#define HOTDUMP_ARM 0xc1684801u
#define HOTDUMP_DISARM 0x00004802u
#define HOTDUMP_STATUS 0x80884803u
#endif

struct hotdump_range {
	__u64 start;
	__u64 end;
};
_Static_assert(sizeof(struct hotdump_range) == 16, "size");
_Static_assert(__builtin_offsetof(struct hotdump_range, start) == 0, "start");
_Static_assert(__builtin_offsetof(struct hotdump_range, end) == 8, "end");

struct hotdump_arm {
	__u32 version;
	__u32 size;
	struct hotdump_range header;
	__u64 identity_at;
	__u8 identity[16];
	__u32 follow;
	__u32 excluded_count;
	struct hotdump_range excluded[HOTDUMP_MAX_EXCLUDED];
	__u64 tree_pointer;
	struct hotdump_range trees[2];
	__u32 reason;
	__u32 found;
};
_Static_assert(sizeof(struct hotdump_arm) == 360, "size");
_Static_assert(__builtin_offsetof(struct hotdump_arm, version) == 0, "version");
_Static_assert(__builtin_offsetof(struct hotdump_arm, size) == 4, "size");
_Static_assert(__builtin_offsetof(struct hotdump_arm, header) == 8, "header");
_Static_assert(__builtin_offsetof(struct hotdump_arm, identity_at) == 24, "identity_at");
_Static_assert(__builtin_offsetof(struct hotdump_arm, identity) == 32, "identity");
_Static_assert(__builtin_offsetof(struct hotdump_arm, follow) == 48, "follow");
_Static_assert(__builtin_offsetof(struct hotdump_arm, excluded_count) == 52, "excluded_count");
_Static_assert(__builtin_offsetof(struct hotdump_arm, excluded) == 56, "excluded");
_Static_assert(__builtin_offsetof(struct hotdump_arm, tree_pointer) == 312, "tree_pointer");
_Static_assert(__builtin_offsetof(struct hotdump_arm, trees) == 320, "trees");
_Static_assert(__builtin_offsetof(struct hotdump_arm, reason) == 352, "reason");
_Static_assert(__builtin_offsetof(struct hotdump_arm, found) == 356, "found");

struct hotdump_status {
	__u32 version;
	__u32 size;
	__u32 armed;
	__u32 reason;
	__u32 follow;
	__u32 used_slots;
	__u32 free_slots;
	__u32 reserved;
	struct hotdump_range header;
	__u8 identity[16];
	__u64 memory_events;
	__u64 cpu_events;
	__u64 stores;
	__u64 reconciled;
	__u64 last_ns;
	__u64 slowest_ns;
	__u64 last_time;
	__u64 tree;
	__u64 trees_built;
};
_Static_assert(sizeof(struct hotdump_status) == 136, "size");
_Static_assert(__builtin_offsetof(struct hotdump_status, version) == 0, "version");
_Static_assert(__builtin_offsetof(struct hotdump_status, size) == 4, "size");
_Static_assert(__builtin_offsetof(struct hotdump_status, armed) == 8, "armed");
_Static_assert(__builtin_offsetof(struct hotdump_status, reason) == 12, "reason");
_Static_assert(__builtin_offsetof(struct hotdump_status, follow) == 16, "follow");
_Static_assert(__builtin_offsetof(struct hotdump_status, used_slots) == 20, "used_slots");
_Static_assert(__builtin_offsetof(struct hotdump_status, free_slots) == 24, "free_slots");
_Static_assert(__builtin_offsetof(struct hotdump_status, reserved) == 28, "reserved");
_Static_assert(__builtin_offsetof(struct hotdump_status, header) == 32, "header");
_Static_assert(__builtin_offsetof(struct hotdump_status, identity) == 48, "identity");
_Static_assert(__builtin_offsetof(struct hotdump_status, memory_events) == 64, "memory_events");
_Static_assert(__builtin_offsetof(struct hotdump_status, cpu_events) == 72, "cpu_events");
_Static_assert(__builtin_offsetof(struct hotdump_status, stores) == 80, "stores");
_Static_assert(__builtin_offsetof(struct hotdump_status, reconciled) == 88, "reconciled");
_Static_assert(__builtin_offsetof(struct hotdump_status, last_ns) == 96, "last_ns");
_Static_assert(__builtin_offsetof(struct hotdump_status, slowest_ns) == 104, "slowest_ns");
_Static_assert(__builtin_offsetof(struct hotdump_status, last_time) == 112, "last_time");
_Static_assert(__builtin_offsetof(struct hotdump_status, tree) == 120, "tree");
_Static_assert(__builtin_offsetof(struct hotdump_status, trees_built) == 128, "trees_built");

_Static_assert(HOTDUMP_ARM == _IOWR('H', 1, struct hotdump_arm), "ARM");
_Static_assert(HOTDUMP_DISARM == _IO('H', 2), "DISARM");
_Static_assert(HOTDUMP_STATUS == _IOR('H', 3, struct hotdump_status), "STATUS");

#endif
