"""SLURM whole, on this machine, for tests: munged, slurmctld and one slurmd, all of them our own.

They come from Debian's packages slurm-wlm and munge, and run as whoever runs the tests, in a folder
of their own, on ports of the loopback interface. The machine's own configuration is not read.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import servers
from jobs import wait_until

PACKAGES = "slurm-wlm munge"

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue")

SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Daemons are where only root looks."""

DEVICES = ("/dev/null", "/dev/zero")
"""Stand for GPUs: SLURM hands out any character device."""

# More cores and memory than the machine has: jobs of tests wait for one another otherwise.
# cred_expire is also how long a requeued job waits. slurmctld looks every 30 s for jobs that are
# over their time; that cannot be changed.
CONF = """
ClusterName=isochunk
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
{addresses}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
OverTimeLimit=0
KillWait=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=node NodeHostname=localhost NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000000 Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


@dataclass(frozen=True)
class Slurm:
    """A running SLURM of one node."""

    folder: Path
    environment: dict[str, str]
    """Variables that make SLURM's commands use it."""

    def __call__(self, command: str, *arguments: str) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(
            [command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, (command, *arguments, done.stdout, done.stderr, self.logs())
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        """Submit a batch script and return the number of its job."""
        return self("sbatch", "--parsable", *arguments)

    def job(self, number: str) -> dict[str, str]:
        """Return what SLURM knows of a job; it forgets jobs 5 minutes after their end."""
        return dict(re.findall(r"(\S+?)=(\S*)", self("scontrol", "show", "job", number)))

    def jobs(self, name: str) -> list[dict[str, str]]:
        """Return all jobs of a name, the latest first."""
        listed = self("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A")
        return [self.job(number) for number in sorted(listed.split(), key=int, reverse=True)]

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for something that SLURM does; asking it often would keep a core busy."""
        end_s = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end_s, ("waited too long", self.logs())
            time.sleep(0.5)

    def idle(self) -> bool:
        """Tell whether no job runs, ends or waits."""
        return not self("squeue", "--noheader")

    def logs(self) -> str:
        """Return the last lines of each daemon."""
        return "\n".join(
            f"{log.name}: {line}"
            for log in sorted(self.folder.glob("*.log"))
            for line in log.read_text(errors="replace").splitlines()[-20:]
        )


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Run SLURM until the block ends; it leaves neither processes nor files behind."""
    with ExitStack() as closing:
        # Not in pytest's folder: the path of a socket has at most 107 characters.
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        folder.chmod(0o755)  # else munge takes its socket for useless to other users
        configure(folder)
        environment = {**os.environ, "PATH": SEARCHED, "SLURM_CONF": f"{folder}/slurm.conf"}
        made = Slurm(folder, environment)
        closing.callback(sweep, environment["SLURM_CONF"])
        for name, arguments in {
            "munged": (
                "--foreground",
                f"--key-file={folder}/munge.key",
                f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munged.pid",
                f"--seed-file={folder}/munged.seed",
                f"--log-file={folder}/munge.log",
                "--num-threads=2",
                "--force",
            ),
            "slurmctld": ("-D", "-i"),
            "slurmd": ("-D", "-N", "node"),
        }.items():
            log = closing.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [name, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            closing.callback(servers.end, process)
            if name == "munged":
                wait_until((folder / "munge.socket").exists, 10)
        wait_for_node(made)
        yield made
        made("scancel", "--full", f"--user={getpass.getuser()}")
        with suppress(AssertionError):  # what is left is swept
            made.wait(made.idle, 10)


def configure(folder: Path) -> None:
    """Write what the daemons read."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    conf = CONF.format(
        folder=folder,
        user=getpass.getuser(),
        gpus=len(DEVICES),
        ctld_port=servers.free_port(),
        d_port=servers.free_port(),
        addresses=addresses(),
    )
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={d}\n" for d in DEVICES))


def addresses() -> str:
    """Keep the daemons to the loopback where that can be had.

    They listen where the machine's name leads, or everywhere; either way munge keeps others out.
    """
    try:
        own = socket.gethostbyname(socket.gethostname())
    except OSError:  # as in some containers
        return ""
    restriction = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
    return restriction if own == "127.0.0.1" else ""


def wait_for_node(made: Slurm) -> None:
    """Wait until jobs can start; say why if they never can."""
    end_s = time.monotonic() + 30
    while True:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            env=made.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if done.stdout.strip() == "idle":
            return
        assert time.monotonic() < end_s, (done.stdout, done.stderr, made.logs())
        time.sleep(0.1)


def sweep(conf: str) -> None:
    """Kill what jobs have left: processes whose SLURM was this one."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("SLURM_CONF") == conf:
                process.kill()
