#!/usr/bin/env bash
# A real Slurm on this one host, from Debian's packages, without systemd, cgroups or accounting: for tests and for CI.
# Idempotent; needs root. NODES (4), CPUS per node (2), MEM per node in MB (2000) and GPUS per node (2), which are other
# names of /dev/null that Slurm hands out as it does real ones, may be set.
# It keeps to itself: a configuration that somebody else wrote is left alone.
set -euo pipefail
NODES=${NODES:-4} CPUS=${CPUS:-2} MEM=${MEM:-2000} GPUS=${GPUS:-2}
state=/var/lib/slurm logs=/var/log/slurm run=/run/slurm conf=/etc/slurm/slurm.conf mark="# written by start_slurm.sh"
host=$(hostname -s)

if [ -s "$conf" ] && ! grep -qF "$mark" "$conf"; then
  echo "$conf was not written by this script: stop that Slurm, or use it as it is" >&2
  exit 1
fi
if ! command -v slurmctld slurmd sbatch munged >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
fi

alive() { # whether the process of a pid file lives
  [ -s "$1" ] && [ -d "/proc/$(cat "$1")" ] && ! grep -q '^State:.*Z' "/proc/$(cat "$1")/status"
}
until_true() { # SECONDS COMMAND...: ask five times a second
  local tries=$(($1 * 5))
  shift
  for _ in $(seq "$tries"); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done
  echo "gave up waiting for: $*; see $logs" >&2
  exit 1
}

install -d -o munge -g munge -m 0700 /etc/munge /var/lib/munge /var/log/munge
install -d -o munge -g munge -m 0755 /run/munge
if [ ! -s /etc/munge/munge.key ]; then
  (umask 077 && head -c 128 /dev/urandom >/etc/munge/munge.key)
  chown munge: /etc/munge/munge.key
fi
alive /run/munge/munged.pid || setsid runuser -u munge -- /usr/sbin/munged </dev/null >/dev/null 2>&1
until_true 10 munge -n

install -d -o slurm -g slurm "$state" "$state/ctld" "$logs" "$run"
install -d /etc/slurm
: >/etc/slurm/gres.conf
{
  echo "$mark"
  cat <<C
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/node-%n
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd-%n.pid
SlurmctldLogFile=$logs/slurmctld.log
SlurmdLogFile=$logs/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=10000,sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=300
SlurmdTimeout=30
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
C
  for i in $(seq "$NODES"); do
    install -d "$state/node-n$i"
    for gpu in $(seq 0 $((GPUS - 1))); do
      [ -c "$state/gpu$gpu" ] || mknod "$state/gpu$gpu" c 1 3
      echo "NodeName=n$i Name=gpu File=$state/gpu$gpu" >>/etc/slurm/gres.conf
    done
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + i)) CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUS State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=200 State=UP PriorityTier=1"
  echo "PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefMemPerCPU=200 State=UP PriorityTier=10 PreemptMode=OFF"
} >"$conf.new"
mv "$conf.new" "$conf"

alive "$run/slurmctld.pid" || setsid /usr/sbin/slurmctld </dev/null >/dev/null 2>&1
for i in $(seq "$NODES"); do
  alive "$run/slurmd-n$i.pid" || setsid /usr/sbin/slurmd -N "n$i" </dev/null >/dev/null 2>&1
done
all_up() { [ "$(sinfo -h -N -p main -t idle,mix,alloc | wc -l)" = "$NODES" ]; }
until_true 60 all_up
sinfo
