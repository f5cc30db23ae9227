#!/usr/bin/env bash
# fresh_machine.sh [--worktree] [bookworm|noble] [COMMAND ...]
#
# Makes a bare Debian 12 (bookworm) or Ubuntu 24.04 (noble) with debootstrap, clones this repository into it and runs each
# COMMAND (default: the two commands of the README's first screen, then ./run test) in the clone, printing its wall time.
# --worktree takes the files as they lie here instead of the last commit. Needs root and debootstrap. The machine lies
# in $FRESH_MACHINE (default: a new folder in /tmp, removed at the end; a folder that is named is kept and used again).
set -euo pipefail
repository=$(git -C "$(dirname "$(readlink -f "$0")")" rev-parse --show-toplevel)
worktree=false
[[ ${1:-} != --worktree ]] || { worktree=true; shift; }
release=bookworm
[[ ! ${1:-} =~ ^(bookworm|noble)$ ]] || { release=$1; shift; }
[[ $# != 0 ]] || set -- './run memcalc plan llama-2-7b --gpus 8 --zero 3' './run memcalc --help' './run test'
[[ $(id -u) == 0 ]] || { echo "needs root (debootstrap, chroot)"; exit 2; }

machine=${FRESH_MACHINE:-}
if [[ -z $machine ]]; then
  machine=$(mktemp -d /tmp/fresh_machine.XXXXXX)
  chmod 755 "$machine"
  remove_machine=true
fi
clean_up() {
  for mounted in dev/pts proc run/netns; do umount "$machine/$mounted" 2>/dev/null || true; done
  [[ -z ${remove_machine:-} ]] || rm -rf --one-file-system "$machine"
}
trap clean_up EXIT

if [[ ! -e $machine/etc/os-release ]]; then
  case $release in
    bookworm) debootstrap --variant=minbase bookworm "$machine" http://deb.debian.org/debian ;;
    noble)
      # Debian's debootstrap may not know the release's name; all of Ubuntu's are made by one script.
      debootstrap --variant=minbase --components=main,universe ${UBUNTU_KEYRING:+--keyring="$UBUNTU_KEYRING"} \
        noble "$machine" http://archive.ubuntu.com/ubuntu gutsy
      echo "deb http://archive.ubuntu.com/ubuntu noble-updates main universe" >>"$machine/etc/apt/sources.list"
      ;;
  esac >"$machine.log" 2>&1 || { tail "$machine.log"; exit 1; }
  rm "$machine.log"
fi
# The network as this machine reaches it: names, proxies, certificates.
cp /etc/resolv.conf "$machine/etc/resolv.conf"
apt-config dump Acquire | grep -iE 'proxy|check-(date|valid)' >"$machine/etc/apt/apt.conf.d/00host" || true
mountpoint -q "$machine/proc" || mount -t proc proc "$machine/proc"
mountpoint -q "$machine/dev/pts" || mount -t devpts devpts "$machine/dev/pts"

rm -rf "$machine/root/shardplan"
if $worktree; then
  mkdir "$machine/root/shardplan"
  git -C "$repository" ls-files -co --exclude-standard -z |
    tar -C "$repository" --null --ignore-failed-read -T - -c | tar -C "$machine/root/shardplan" --no-same-owner -x
else
  git clone -q --no-hardlinks "$repository" "$machine/root/shardplan"
fi

status=0
for command; do
  echo "--- $release: $command"
  begin=$SECONDS
  chroot "$machine" env -i HOME=/root TERM=dumb LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    bash -c "cd /root/shardplan && $command" </dev/null || status=$?
  echo "--- exit status $status after $((SECONDS - begin)) s"
  ((status == 0)) || break
done
exit $status
