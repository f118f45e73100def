# The two commands: `make demo` shows the main job on real kernels, `make test` runs every test.
# Both install what they need (Debian packages) and keep downloads outside the tree.
ARCH ?= x86_64
DESTDIR ?=
PREFIX ?= /usr

.PHONY: help build module dkms deb demo test lab bench setup fmt install clean

help:
	@echo 'make demo            load, hot-add memory and a CPU, panic, capture, check: on a real kernel in QEMU'
	@echo 'make test            all tests: format, lints, docs, unit and property tests, lab rounds in QEMU'
	@echo 'make build           the static program, in target/dist/$(ARCH)/hotdump'
	@echo 'make module KDIR=x   the kernel module for the headers or build folder x, in target/dist/$(ARCH)/RELEASE/hotdump.ko'
	@echo '                     HOTDUMP_MEMORY=0 or HOTDUMP_CPUS=0 leaves that out of it'
	@echo 'make dkms            its sources for DKMS, which needs no Rust, in target/dist/$(ARCH)/hotdump-dkms-VERSION'
	@echo 'make install         install it under $$DESTDIR$$PREFIX (with units, udev rules, initramfs hooks, man pages, completions, configuration)'
	@echo 'make deb             Debian packages: hotdump and hotdump-dkms, in target/dist/$(ARCH)'
	@echo 'make lab SCENARIO=x  one lab round; without SCENARIO, their list'
	@echo 'make bench           guest instructions: hotdump load beside kexec-tools; events by native handler, module, reload'

# A linker is needed before anything of ours can run, so it cannot be xtask that installs it.
cc:
	@command -v cc >/dev/null || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
.PHONY: cc

setup: cc
	cargo xtask setup

build: cc
	cargo xtask build --arch $(ARCH)

# HOTDUMP_MEMORY and HOTDUMP_CPUS reach the module through the environment, as make does with all that it is given.
module: cc
	@test -n "$(KDIR)" || { echo 'KDIR= the headers or build folder of a kernel, such as /lib/modules/RELEASE/build'; exit 1; }
	cargo xtask module "$(KDIR)" --arch $(ARCH)

dkms: cc
	cargo xtask dkms

deb: cc
	cargo xtask deb

demo: cc
	cargo xtask demo --arch $(ARCH)

test: cc
	cargo xtask test

lab: cc
	cargo xtask lab $(SCENARIO)

bench: cc
	cargo xtask bench load
	cargo xtask bench events

install: build install-files

# What install and the package put where, of what is built.
.PHONY: install-files
install-files:
	install -Dm755 target/dist/$(ARCH)/hotdump $(DESTDIR)$(PREFIX)/sbin/hotdump
	for unit in dist/*.service; do install -Dm644 $$unit $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done
	install -Dm644 dist/98-hotdump.rules $(DESTDIR)$(PREFIX)/lib/udev/rules.d/98-hotdump.rules
	install -Dm755 dist/initramfs-tools/hook $(DESTDIR)$(PREFIX)/share/initramfs-tools/hooks/hotdump
	install -Dm755 dist/initramfs-tools/capture $(DESTDIR)$(PREFIX)/share/initramfs-tools/scripts/local-premount/hotdump
	for file in dist/dracut/*; do install -Dm755 $$file $(DESTDIR)$(PREFIX)/lib/dracut/modules.d/90hotdump/$${file##*/}; done
	for page in docs/man/*.[58]; do install -Dm644 $$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/}; done
	test -e $(DESTDIR)/etc/hotdump/hotdump.toml || install -Dm644 dist/hotdump.toml $(DESTDIR)/etc/hotdump/hotdump.toml
	install -d $(addprefix $(DESTDIR)$(PREFIX)/share/,bash-completion/completions zsh/vendor-completions fish/vendor_completions.d)
	target/dist/$(shell uname -m)/hotdump completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hotdump
	target/dist/$(shell uname -m)/hotdump completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_hotdump
	target/dist/$(shell uname -m)/hotdump completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/hotdump.fish

clean:
	cargo clean
