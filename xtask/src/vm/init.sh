#!/bin/sh
# The first process of a virtual machine: brings up what the tests use, runs them, and powers off.
# Lines that begin with "netobs-vm:" are for the command that has started the machine.
export PATH=/bin
/bin/busybox mount -t proc proc /proc
# Where a real program has the name, it stays.
/bin/busybox --install -s /bin 2>/dev/null
mount -t sysfs sysfs /sys
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/modules/$module.ko" || echo "netobs-vm: left out: module $module does not load"
done < /modules/order
ip link set lo up
echo "netobs-vm: booted $(uname -r)"

export NETOBS_BIN=/bin/netobs NETOBS_TEST_SKIPS=/tmp/skips NETOBS_TEST_ROWS=/tmp/rows NETOBS_TEST_PATIENCE=6
export RUST_BACKTRACE=1 NO_COLOR=1
# One argument a line.
set -f
IFS='
'
arguments=$(cat /arguments)
for test in $(ls /tests); do
    : > $NETOBS_TEST_SKIPS
    : > $NETOBS_TEST_ROWS
    "/tests/$test" $arguments
    code=$?
    sed 's/^SKIP/netobs-vm: left out:/' $NETOBS_TEST_SKIPS
    sed 's/^/netobs-vm: row: /' $NETOBS_TEST_ROWS
    echo "netobs-vm: $test: exit $code"
done
poweroff -f
