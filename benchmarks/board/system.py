"""A virtual arm64 board: Debian 12 by debootstrap, its kernel, its wheels and its disk; all of it made as root.

What takes minutes (the system, the wheels) is kept in a directory, and used again by the next run.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MissingError", "VirtualBoard"]

PACKAGES = "systemd,systemd-sysv,dbus,udev,kmod,iproute2,ca-certificates,python3,python3-venv"
PROGRAMS = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-system-aarch64": "qemu-system-arm",
    "cpio": "cpio",
    "mke2fs": "e2fsprogs",
}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
TORCH = "2.9.1"
"""The newest whose wheel for aarch64 on the common index is a CPU build: later ones bring CUDA along."""
MODULES = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic")
"""That the kernel needs before it has a disk; the rest is loaded from there."""
DISK_BYTES = 6 << 30

_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module; done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /lib/systemd/systemd
"""
_NETWORK = "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n"
# What the board says about itself, once in ten seconds: a line that the host finds in the console's log.
_REPORT_UNIT = """\
[Unit]
Description=says on the console what the agent takes
[Service]
ExecStart=/usr/local/bin/board-report
[Install]
WantedBy=multi-user.target
"""
_REPORT = """\
#!/bin/sh
while sleep 10; do
    pid=$(systemctl show --property=MainPID --value edgefed-agent.service)
    [ "$pid" -gt 0 ] || continue
    set -- $(awk '/^(VmRSS|RssAnon|RssFile):/ {print $2}' /proc/$pid/status)
    children=$(cat /proc/$pid/task/*/children 2> /dev/null | wc -w)
    token=$([ -e /etc/edgefed/claim/token ] && echo there || echo gone)
    echo "board report: pid=$pid rss_kib=$1 anonymous_kib=$2 file_kib=$3 children=$children token=$token" > /dev/console
done
"""


class MissingError(RuntimeError):
    """A program or a right is not here."""


class VirtualBoard:
    """The parts of a board.

    Attributes:
        base: the system as debootstrap and a few settings made it, without edgefed.
        wheels: of `edgefed[train]` for it.
        kernel: its kernel.
    """

    def __init__(self, scratch: Path, repository: Path) -> None:
        _check_machine()
        self._scratch = scratch.absolute()
        self._repository = repository
        self.base = self._scratch / "base"
        self.wheels = self._scratch / "wheels"
        self.kernel = self._scratch / "vmlinuz"
        self._debs = self._scratch / "debs"
        self._scratch.mkdir(parents=True, exist_ok=True)

    def make(self) -> None:
        """Makes whatever is not there yet, and edgefed's own wheel anew."""
        if not (self._scratch / "base.made").exists():
            self._make_base()
            (self._scratch / "base.made").touch()
        self._make_wheels()

    def _make_base(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
        _run(["debootstrap", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", "bookworm",
              str(self.base)])  # fmt: skip
        self._debs.mkdir(exist_ok=True)
        with self._entered() as chroot:
            wanted = "apt-cache depends linux-image-arm64 | sed -n 's/.*Depends: \\(linux-image-[0-9].*\\)/\\1/p'"
            download = f"cd /mnt && apt-get -o APT::Sandbox::User=root download $({wanted}) busybox-static"
            chroot(download)
        for deb in self._debs.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(deb), str(self._scratch / "unpacked")])
        unpacked = self._scratch / "unpacked"
        (image,) = unpacked.glob("boot/vmlinuz-*")
        shutil.copy(image, self.kernel)
        shutil.copytree(unpacked / "lib/modules", self.base / "usr/lib/modules", dirs_exist_ok=True)
        release = image.name.removeprefix("vmlinuz-")
        (self.base / "etc/hostname").write_text("board\n")
        (self.base / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 1\n")
        (self.base / "etc/systemd/network/80-wired.network").write_text(_NETWORK)
        (self.base / "etc/systemd/system/board-report.service").write_text(_REPORT_UNIT)
        report = self.base / "usr/local/bin/board-report"
        report.write_text(_REPORT)
        report.chmod(0o755)
        with self._entered() as chroot:
            chroot(f"depmod {release} && systemctl enable systemd-networkd board-report && apt-get clean")
        self._make_initramfs(release)

    def _make_initramfs(self, release: str) -> None:
        """Packs what finds the disk: a shell, and the modules in the order that they need each other."""
        tree, modules = self._scratch / "initramfs", self.base / "usr/lib/modules" / release
        shutil.rmtree(tree, ignore_errors=True)
        for directory in ("bin", "dev", "modules", "root"):
            (tree / directory).mkdir(parents=True)
        shutil.copy(self._scratch / "unpacked/bin/busybox", tree / "bin/busybox")
        needs = dict(line.split(":", 1) for line in (modules / "modules.dep").read_text().splitlines())
        order: list[str] = []
        for name in MODULES:
            (path,) = [path for path in needs if Path(path).stem == name]
            order += [one for one in (*reversed(needs[path].split()), path) if one not in order]
        for path in order:
            shutil.copy(modules / path, tree / "modules" / Path(path).name)
        init = tree / "init"
        init.write_text(_INIT.format(modules=" ".join(Path(path).name for path in order)))
        init.chmod(0o755)
        with (self._scratch / "initramfs.cpio").open("wb") as packed:
            names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
            subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), stdout=packed, cwd=tree,
                           check=True)  # fmt: skip

    def _make_wheels(self) -> None:
        """Has pip, on the board's own architecture, fetch what `edgefed[train]` needs; ours is made here."""
        self.wheels.mkdir(exist_ok=True)
        for old in self.wheels.glob("edgefed-*.whl"):
            old.unlink()
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(self.wheels)]
        _run([*build, str(self._repository)])
        if len(list(self.wheels.iterdir())) > 1:
            return
        self._debs.mkdir(exist_ok=True)
        _run([*build[:-1], str(self._debs), "rouge-score"])  # there is no wheel of it
        shutil.copy(next(self.wheels.glob("edgefed-*.whl")), self._debs)
        constraints = (self._repository / "constraints.txt").read_text()
        (self._debs / "constraints.txt").write_text(re.sub(r"(?m)^torch==.*$", f"torch=={TORCH}", constraints))
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", self._debs / "authorities.pem")
        with self._entered() as chroot:
            chroot(
                "python3 -m venv /mnt/venv && /mnt/venv/bin/pip download --quiet --no-cache-dir --dest /mnt/wheels "
                "--cert /mnt/authorities.pem --find-links /mnt --only-binary=:all: -c /mnt/constraints.txt "
                "'edgefed[train]' pip"
            )
        for wheel in (self._debs / "wheels").iterdir():
            shutil.copy(wheel, self.wheels)

    def base_wheels(self) -> Path:
        """Returns a wheelhouse of edgefed without its extras, chosen by the board's own pip among the others."""
        shared, chosen = self._debs / "all", self._scratch / "base-wheels"
        for directory in (shared, self._debs / "base-wheels", chosen):
            shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.wheels, shared)
        with self._entered() as chroot:
            pip = "/mnt/venv/bin/pip download --quiet --no-index --find-links /mnt/all"
            chroot(f"{pip} --dest /mnt/base-wheels edgefed pip")
        shutil.rmtree(shared)
        return Path(shutil.copytree(self._debs / "base-wheels", chosen))

    @contextlib.contextmanager
    def _entered(self) -> Iterator[_Chroot]:
        """Gives what runs commands inside the base, with the network, and with a directory of ours at /mnt."""
        resolver = self.base / "etc/resolv.conf"
        had = resolver.read_bytes() if resolver.exists() else None
        shutil.copy("/etc/resolv.conf", resolver)
        try:
            yield _Chroot(self.base, self._debs)
        finally:
            resolver.unlink()
            if had is not None:
                resolver.write_bytes(had)

    def new_root(self) -> Path:
        """Returns a fresh copy of the base, to be flashed."""
        root = self._scratch / "root"
        shutil.rmtree(root, ignore_errors=True)
        _run(["cp", "-a", "--reflink=auto", str(self.base), str(root)])
        return root

    def new_disk(self, root: Path) -> Path:
        """Returns a disk that has a root file system on it."""
        disk = self._scratch / "disk.ext4"
        disk.unlink(missing_ok=True)
        with disk.open("wb") as file:
            file.truncate(DISK_BYTES)
        _run(["mke2fs", "-q", "-t", "ext4", "-F", "-d", str(root), str(disk)])
        return disk

    def boot_command(self, disk: Path, memory_mib: int, cpus: int, *, clock: str = "utc") -> list[str]:
        """Returns what starts the board: its console is stdout, 10.0.2.2 is this machine, and `clock` what it says."""
        return [
            "qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a72", "-smp", str(cpus), "-m", str(memory_mib),
            "-accel", "tcg,thread=multi", "-nodefaults", "-nographic", "-serial", "stdio",
            "-kernel", str(self.kernel), "-initrd", str(self._scratch / "initramfs.cpio"),
            "-append", "console=ttyAMA0 quiet systemd.journald.forward_to_console=1 systemd.show_status=0",
            "-drive", f"file={disk},format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "i6300esb", "-rtc", f"base={clock}",
        ]  # fmt: skip


class _Chroot:
    """Runs shell commands in a root file system of another architecture; nothing stays mounted."""

    def __init__(self, root: Path, shared: Path) -> None:
        self._root = root
        self._shared = shared

    def __call__(self, command: str) -> None:
        mounts = f"mount --bind {self._shared} {self._root}/mnt && mount -t proc proc {self._root}/proc"
        mounts += f" && mount --bind /dev {self._root}/dev"
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "COMMAND": command}
        script = f'{mounts} && exec chroot {self._root} /bin/sh -ec "$COMMAND"'
        _run(["unshare", "--mount", "sh", "-ec", script], environment)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:3])} … failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _check_machine() -> None:
    """Sees to it that programs of arm64 run here.

    Raises:
        MissingError: what is needed for that, or for anything else, is not here.
    """
    if os.geteuid() != 0:
        raise MissingError("making a root file system takes root")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None]:
        raise MissingError(f"install first: apt-get install {' '.join(missing)}")
    if not (BINFMT / "status").exists():
        _run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)])
    if not (BINFMT / "qemu-aarch64").exists():
        _run(["update-binfmts", "--enable", "qemu-aarch64"])
