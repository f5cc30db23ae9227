#!/bin/bash
# mpi_hosts.sh SHARDPLAN_TRAIN MPIEXEC: hosts are network namespaces of this machine, joined by a bridge, and MPI's processes
# in them speak TCP. Two and four hosts give the parameters that threads give at the same --reduction-group. With a link cut
# off, or a process stopped, the others name who is missing by the deadline.
# Needs root, `ip netns` and Open MPI's mpirun; else exits with 77, which ctest takes as skipped.
set -uo pipefail
train=$1 mpiexec=$2
skip() { echo "skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
command -v ip > /dev/null || skip "there is no ip (package iproute2)"
"$mpiexec" --version 2>&1 | grep -q "Open MPI\|OpenRTE" || skip "$mpiexec is not Open MPI's"

# Names of this run alone; interfaces have at most 15 characters.
id=$(printf '%x' $$)
bridge=sp${id}b
net=10.213.$(($$ % 250))
hosts=4
folder=$(mktemp -d)
cleanup() {
  for host in $(seq 0 $((hosts - 1))); do
    ip netns pids "sp$id-$host" 2> /dev/null | xargs -r kill -KILL 2> /dev/null
    ip netns del "sp$id-$host" 2> /dev/null
  done
  ip link del "$bridge" 2> /dev/null
  rm -rf "$folder"
}
trap cleanup EXIT

make_hosts() {
  ip link add "$bridge" type bridge && ip addr add "$net.254/24" dev "$bridge" && ip link set "$bridge" up || return 1
  for host in $(seq 0 $((hosts - 1))); do
    ip netns add "sp$id-$host" &&
      ip link add "sp${id}v$host" type veth peer name eth0 netns "sp$id-$host" &&
      ip link set "sp${id}v$host" master "$bridge" up &&
      ip -n "sp$id-$host" addr add "$net.$((host + 1))/24" dev eth0 &&
      ip -n "sp$id-$host" link set eth0 up && ip -n "sp$id-$host" link set lo up || return 1
  done
}
make_hosts 2> "$folder/why" || skip "network namespaces cannot be made: $(head -1 "$folder/why")"

# What mpirun starts its daemons with, in the place of ssh: HOST COMMAND...
cat > "$folder/enter" << END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1
shift
exec ip netns exec sp$id-\$((\${host##*.} - 1)) unshare --uts sh -c "hostname host\${host##*.}; \$*"
END
chmod +x "$folder/enter"
seq 1 4000 > "$folder/text"

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
over_hosts() { # HOSTS RANKS PROGRAM...: as many ranks on each host, in order
  local count=$1 ranks=$2 list=
  shift 2
  for host in $(seq 1 "$count"); do list=$list${list:+,}$net.$host:$((ranks / count)); done
  "$mpiexec" --mca plm rsh --mca plm_rsh_agent "$folder/enter" --mca btl tcp,self --mca btl_tcp_if_include "$net.0/24" \
    --mca oob_tcp_if_include "$net.0/24" --mca mpi_yield_when_idle 1 --mca hwloc_base_binding_policy none \
    --host "$list" -n "$ranks" "$@"
}

failed=0
fail() { echo "$1"; head -40 "$folder/output"; failed=1; }
model="--text $folder/text --layers 2 --width 32 --heads 2 --context 16 --micro-batch 2"
digest() { sed -n 's/.*"parameters_digest":"\([^"]*\)".*/\1/p' "$1"; }

compare() { # HOSTS RANKS FLAGS...
  local count=$1 ranks=$2
  shift 2
  # shellcheck disable=SC2086
  "$train" $model --steps 3 --json --ranks "$ranks" "$@" > "$folder/threads"
  # shellcheck disable=SC2086
  over_hosts "$count" "$ranks" "$train" $model --steps 3 --json --comm mpi "$@" > "$folder/output" 2>&1 ||
    fail "$count hosts, $ranks ranks, $*: failed"
  local expected
  expected=$(digest "$folder/threads")
  [ -n "$expected" ] && [ "$(digest "$folder/output")" = "$expected" ] ||
    fail "$count hosts, $ranks ranks, $*: expected parameters $expected"
}

compare 2 2 --zero 3
compare 2 4 --zero 2 --reduction-group 2 --precision bf16-mixed
compare 2 4 --zero 3 --replicate 2 --reduction-group 2
compare 4 4 --zero 3 --reduction-group 2
compare 4 4 --zero 1 --precision bf16-mixed

# On two hosts, then: does what is given as soon as training goes on. The ranks in $must_end end by themselves; the launcher may
# wait for a daemon that it cannot reach, and is ended here. Output is the run's.
interrupt() { # COMMAND...
  rm -f "$folder"/process.* "$folder/output"
  # shellcheck disable=SC2086,SC2016
  over_hosts 2 2 sh -c 'folder=$1; shift; echo $$ > "$folder/process.$OMPI_COMM_WORLD_RANK"; exec "$@"' sh "$folder" \
    "$train" $model --zero 3 --steps 1000000000 --deadline 3 --comm mpi > "$folder/output" 2>&1 &
  local launcher=$!
  for _ in $(seq 600); do
    grep -qs "step " "$folder/output" && break
    kill -0 $launcher 2> /dev/null || break
    sleep 0.1
  done
  "$@"
  for rank in $must_end; do
    for _ in $(seq 300); do
      kill -0 "$(cat "$folder/process.$rank")" 2> /dev/null || break
      sleep 0.1
    done
    kill -0 "$(cat "$folder/process.$rank")" 2> /dev/null && fail "$*: rank $rank has not ended after 30 s"
  done
  # shellcheck disable=SC2046
  kill -KILL $(pgrep -P $launcher) $launcher 2> /dev/null
  wait $launcher 2> /dev/null
}

stop_rank_1() { kill -STOP "$(cat "$folder/process.1")"; }
must_end="0" interrupt stop_rank_1
grep -q "rank 0: rank 1, .*: did not arrive before the deadline (deadline 3000 ms)" "$folder/output" ||
  fail "rank 0 does not name the stopped rank 1"

cut_link() { ip link set "sp${id}v1" down; }
must_end="0 1" interrupt cut_link
grep -q "rank 0: rank 1, .*: did not arrive before the deadline (deadline 3000 ms)" "$folder/output" ||
  fail "rank 0 does not name rank 1, whose link is cut off"
exit $failed
