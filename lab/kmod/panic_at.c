// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * panic_at.ko, for tests only: the kernel panics when it enters a function.
 *
 * insmod panic_at.ko symbol=NAME [skip=N]: on the entry after N entries that are let through.
 */
#include <linux/atomic.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/module.h>

static char *symbol;
module_param(symbol, charp, 0400);
MODULE_PARM_DESC(symbol, "the function to panic at");

static int skip;
module_param(skip, int, 0400);
MODULE_PARM_DESC(skip, "entries to let through before");

static atomic_t left;

static int entered(struct kprobe *probe, struct pt_regs *regs)
{
	if (atomic_dec_return(&left) < 0)
		panic("panic_at: %s", symbol);
	return 0;
}

static struct kprobe probe = { .pre_handler = entered };

static int __init panic_at_init(void)
{
	if (!symbol || skip < 0)
		return -EINVAL;
	atomic_set(&left, skip);
	probe.symbol_name = symbol;
	return register_kprobe(&probe);
}

static void __exit panic_at_exit(void)
{
	unregister_kprobe(&probe);
}

module_init(panic_at_init);
module_exit(panic_at_exit);

MODULE_DESCRIPTION("test: panic at a function");
MODULE_AUTHOR("the hotdump authors");
MODULE_LICENSE("Dual MIT/GPL");
