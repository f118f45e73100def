#!/bin/bash
# Puts hotdump's capture into the initramfs that `hotdump initramfs --builder dracut` asks for, and into no other.

check() {
    [[ -n $HOTDUMP_CAPTURE_DIR ]] || return 1
    # Only where it is named.
    return 255
}

installkernel() {
    local module
    while read -r module; do
        hostonly='' instmods "$module"
    done < "$HOTDUMP_CAPTURE_DIR/modules"
}

install() {
    local file program
    inst /usr/sbin/hotdump
    for file in "$HOTDUMP_CAPTURE_DIR"/*; do
        inst_simple "$file" "/etc/hotdump/${file##*/}"
    done
    while read -r program; do
        inst "$program"
    done < "$HOTDUMP_CAPTURE_DIR/programs"
    # When the devices are there, before the root filesystem is mounted.
    inst_hook pre-mount 10 "$moddir/capture.sh"
}
