// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Crash images: whether there is one, and when somebody is about to replace it.
 */
#include <linux/kexec.h>
#include <linux/kprobes.h>

#include "shim.h"

/*
 * Both system calls unprotect the reservation before they free the image in it, under whatever lock they hold. That
 * is also what the kernel's own handler does before it changes an image; none of ours is one that it changes.
 */
static int before_unprotect(struct kprobe *probe, struct pt_regs *regs)
{
	hd_let_go(hd_core_disarm(HOTDUMP_REASON_OTHER_LOAD));
	return 0;
}

static struct kprobe unprotect_probe = {
	.symbol_name = "arch_kexec_unprotect_crashkres",
	.pre_handler = before_unprotect,
};

static bool is_hooked;

int hd_hook(void)
{
	int error = register_kprobe(&unprotect_probe);

	is_hooked = !error;
	return error;
}

void hd_unhook(void)
{
	if (is_hooked)
		unregister_kprobe(&unprotect_probe);
	is_hooked = false;
}

bool hd_hooked(void)
{
	return is_hooked && !kprobe_disabled(&unprotect_probe);
}

u32 hd_image_loaded(void)
{
	return kexec_crash_loaded() != 0;
}
