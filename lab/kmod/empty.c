// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * empty.ko, for tests only: a function that does nothing, to see what a tracer adds to a call.
 *
 * echo N > /sys/module/empty/parameters/calls: it is called N times, as a notifier is.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/notifier.h>

static noinline int empty_function(struct notifier_block *block, unsigned long action, void *data)
{
	barrier();
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = empty_function };

static int call(const char *value, const struct kernel_param *param)
{
	unsigned int count;
	int error = kstrtouint(value, 0, &count);

	/* By its pointer, read anew each time: not to be left out. */
	while (!error && count--)
		READ_ONCE(notifier.notifier_call)(&notifier, 0, NULL);
	return error;
}

static const struct kernel_param_ops call_ops = { .set = call };

module_param_cb(calls, &call_ops, NULL, 0200);
MODULE_PARM_DESC(calls, "have the empty function called this many times");

MODULE_DESCRIPTION("test: an empty function");
MODULE_AUTHOR("the hotdump authors");
MODULE_LICENSE("Dual MIT/GPL");
