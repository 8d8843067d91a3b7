#!/usr/bin/env bash
# machine.sh DIR NAME: the first process (PID 1) of one machine of the sandbox, inside its own namespaces.
# Says "ready" when it has them, reads its address when machines.py has plugged it in, and starts its daemons.
set -eu
dir=$1 name=$2

hostname "$name"
mount --bind "$dir/etc/hosts" /etc/hosts
mount -t tmpfs tmpfs /dev/shm # shared memory is a machine's own
ip link set lo up
echo ready
read -r address || exit # the one that started it has died
exec >&2
ip addr add "$address/24" dev eth0
ip link set eth0 up

# Every machine has a munged of its own, as on a real cluster; the host uses the controller's.
[ "$name" = controller ] || mount -t tmpfs tmpfs "$dir/run"
rm -f "$dir"/run/munge.sock*
munged --foreground --force --key-file="$dir/etc/munge.key" --socket="$dir/run/munge.sock" \
    --seed-file="$dir/state/munge.$name.seed" --pid-file="$dir/run/munged.inner" &
until [ -S "$dir/run/munge.sock" ]; do sleep 0.02; done
if [ "$name" = controller ]; then slurmctld -D -i & else slurmd -D & fi

# Bash as PID 1 reaps orphans while it waits. A daemon that ends does not end the machine.
trap : TERM INT HUP
sleep infinity &
while :; do wait || true; done
