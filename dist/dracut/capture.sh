#!/bin/sh
# In the capture kernel: saves the dump.
if [ -e /proc/vmcore ] && [ -e /etc/hotdump/run ]; then
    # By name: some distributions have no driver of a watchdog loaded for its device.
    while read -r module; do
        modprobe -q "$module"
    done < /etc/hotdump/modules
    . /etc/hotdump/run
fi
