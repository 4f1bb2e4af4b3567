"""A real Slurm with two nodes on this machine: Debian's munged, slurmctld and one slurmd a node, on loopback, in a folder.

Nodes are names for 127.0.0.1 (in /etc/hosts while it runs) and have null devices for GPUs, so that job scripts that ask for
some run unchanged. Partition `high` preempts `gpu` with a notice. Needs root, as slurmd starts jobs for users.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HOSTS = Path("/etc/hosts")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("scalegan1", "scalegan2")
GPUS, CPUS = 2, 8
TYPE = "a100"
"""What the null devices call themselves."""
PORT = 17400
MARK = "  # scalegan's test cluster\n"

CONFIG = """
ClusterName=scalegan
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
SrunPortRange={first}-{last}
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=10
MinJobAge=600
JobRequeue=1
UnkillableStepTimeout=60
LaunchParameters=disable_send_gids
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 State=UP
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000 Gres=gpu:{type}:{gpus}"


def missing() -> str | None:
    """Why no cluster can be had here."""
    if os.geteuid() != 0:
        return "a Slurm can only be started by root"
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    return f"not installed: {', '.join(lacking)} (Debian: apt install slurm-wlm munge)" if lacking else None


class Cluster:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {"SLURM_CONF": str(root / "slurm.conf")}

    def start(self) -> None:
        self.configure()
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        own = [
            f"--{name}={self.root / 'munge'}.{name.split('-')[0]}" for name in ("socket", "pid-file", "log-file", "seed-file")
        ]
        self.run("munged", "--force", f"--key-file={key}", *own)
        self.run("slurmctld", "-c", "-f", str(self.root / "slurm.conf"))
        for node in NODES:
            self.start_node(node)

    def configure(self) -> None:
        host = os.uname().nodename.split(".")[0]
        for folder in ("state", "dev", *(f"spool.{node}" for node in NODES)):
            (self.root / folder).mkdir(parents=True)
        self.root.chmod(0o755)
        nodes = [
            NODE.format(name=name, host=host, port=PORT + 1 + i, cpus=CPUS, type=TYPE, gpus=GPUS)
            for i, name in enumerate(NODES)
        ]
        config = CONFIG.format(host=host, port=PORT, root=self.root, first=PORT + 100, last=PORT + 199, nodes="\n".join(nodes))
        (self.root / "slurm.conf").write_text(config)
        for i in range(GPUS):
            os.mknod(self.root / "dev" / f"nvidia{i}", 0o20666, os.makedev(1, 3))
        (self.root / "gres.conf").write_text(
            f"Name=gpu Type={TYPE} File={self.root}/dev/nvidia[0-{GPUS - 1}] Flags=nvidia_gpu_env\n"
        )
        with HOSTS.open("a") as file:
            file.writelines(f"127.0.0.1 {node}{MARK}" for node in NODES)

    def start_node(self, node: str) -> None:
        self.run("slurmd", "-f", str(self.root / "slurm.conf"), "-N", node)
        wait_for(
            f"{node} to come up", 30, lambda: node in self.run("sinfo", "-h", "-N", "-t", "idle,alloc,mix", "-o", "%N").split()
        )

    def stop(self) -> None:
        self.run("scancel", "--quiet", "-u", "root")
        time.sleep(1)
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munge"):
            path = self.root / f"{name}.pid"
            with contextlib.suppress(OSError, ValueError):
                kill(int(path.read_text()), signal.SIGTERM)
        lines = HOSTS.read_text().splitlines(keepends=True)
        HOSTS.write_text("".join(line for line in lines if not line.endswith(MARK)))  # in place: it may be a mount

    def run(self, *command: str, extra: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        done = subprocess.run(
            command, env=self.environment | dict(extra or {}), cwd=cwd, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done.stdout

    # --- jobs

    def field(self, job: str, name: str) -> str:
        found = re.search(rf"\b{name}=(\S*)", self.run("scontrol", "show", "job", "-o", job))
        assert found, (job, name)
        return found[1]

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def wait_for_state(self, job: str, *states: str, seconds: float = 180) -> str:
        wait_for(f"job {job} to be {' or '.join(states)}", seconds, lambda: self.state(job) in states)
        return self.state(job)

    def wait_for_restart(self, job: str, restarts: int = 1, seconds: float = 120, *, at_once: bool = True) -> None:
        """Until a requeued job runs again: `at_once`, or when Slurm lets it begin by itself, which is after two minutes."""

        def running() -> bool:
            if int(self.field(job, "Restarts")) < restarts:
                return False
            if at_once and self.state(job) == "PENDING":
                with contextlib.suppress(AssertionError):  # it may have begun meanwhile
                    self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            return self.state(job) in ("RUNNING", "COMPLETED")

        wait_for(f"job {job} to be started again", seconds, running)

    # --- accidents

    def processes(self, job: str, node: str) -> list[int]:
        """What runs on `node` for `job`."""
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURMD_NODENAME={node}".encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
        return found

    def lose_node(self, job: str, node: str) -> None:
        """A node goes dark: its slurmd, and all that runs on it, with what watches over that."""
        tasks = self.processes(job, node)
        stewards = {parent_of(pid) for pid in tasks} - set(tasks) - {None}
        with contextlib.suppress(OSError):
            stewards = {pid for pid in stewards if "slurmstepd" in Path(f"/proc/{pid}/comm").read_text()}
        for pid in [int((self.root / f"slurmd.{node}.pid").read_text()), *stewards, *tasks]:
            kill(pid, signal.SIGKILL)


def kill(pid: int | None, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def wait_for(what: str, seconds: float, done: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)
