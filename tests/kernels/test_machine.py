"""Which variant is taken, and how much of the machine may be used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from puna import _native


def default_variant(forced: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PUNA_VARIANT"}
    if forced is not None:
        environment["PUNA_VARIANT"] = forced
    code = (
        "from puna import _native\ntry: print(_native.default_variant())\nexcept RuntimeError as e: print('refused', e)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, timeout=60
    )


def test_the_last_supported_variant_is_taken() -> None:
    supported, compiled = _native.supported_variants(), _native.compiled_variants()
    assert supported[0] == compiled[0] == "scalar"
    assert set(supported) <= set(compiled)
    assert default_variant(None).stdout.strip() == supported[-1]
    assert default_variant("").stdout.strip() == supported[-1]


def test_a_variant_can_be_forced() -> None:
    for name in _native.supported_variants():
        assert default_variant(name).stdout.strip() == name


def test_an_impossible_variant_is_refused_clearly() -> None:
    said = default_variant("mmx").stdout
    assert said.startswith("refused PUNA_VARIANT: unknown variant 'mmx'; this build has: scalar")
    for name in set(_native.compiled_variants()) - set(_native.supported_variants()):
        said = default_variant(name).stdout
        assert said.startswith(f"refused PUNA_VARIANT: variant '{name}' needs ")
        assert "which this machine does not have; it can run: scalar" in said


def test_cpu_info_of_this_machine() -> None:
    info = _native.cpu_info()
    assert info["affinity"] == sorted(os.sched_getaffinity(0))
    assert 1 <= info["physical_cores"] <= len(info["affinity"])
    assert 1 <= info["default_threads"] <= info["physical_cores"]
    assert info["memory_total"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert info["model"] or info["vendor"]
    if "avx2" in _native.supported_variants():
        assert {"avx2", "fma", "f16c"} <= set(info["features"])


class Machine:
    """A tree that looks like /proc and /sys of some machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemFree: 5 kB\nMemTotal:       32000000 kB\n")

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def info(self) -> dict[str, object]:
        return dict(_native.cpu_info(str(self.root)))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


V2_MOUNT = "24 1 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def test_no_control_groups(machine: Machine) -> None:
    info = machine.info()
    assert (info["cpu_quota"], info["memory_limit"]) == (None, None)
    assert info["memory_total"] == 32000000 * 1024
    assert info["physical_cores"] == len(os.sched_getaffinity(0))


def test_version_2_takes_the_tightest_of_all_enclosing_groups(machine: Machine) -> None:
    machine.write("proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/sda rw\n" + V2_MOUNT)
    machine.write("proc/self/cgroup", "0::/user.slice/app.service/inner\n")
    machine.write("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n")
    machine.write("sys/fs/cgroup/user.slice/app.service/cpu.max", "max 100000\n")
    machine.write("sys/fs/cgroup/user.slice/app.service/inner/cpu.max", "800000 100000\n")
    machine.write("sys/fs/cgroup/user.slice/memory.max", "max\n")
    machine.write("sys/fs/cgroup/user.slice/app.service/memory.max", "1073741824\n")
    machine.write("sys/fs/cgroup/user.slice/app.service/inner/memory.max", "2147483648\n")
    info = machine.info()
    assert info["cpu_quota"] == 1.5
    assert info["memory_limit"] == 1 << 30
    assert info["default_threads"] == 1


def test_version_2_in_a_container_that_sees_only_its_own_group(machine: Machine) -> None:
    mount = "24 1 0:22 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"
    machine.write("proc/self/mountinfo", mount)
    machine.write("proc/self/cgroup", "0::/docker/abc\n")
    machine.write("sys/fs/cgroup/cpu.max", "50000 100000\n")
    machine.write("sys/fs/cgroup/memory.max", "4096\n")
    info = machine.info()
    assert (info["cpu_quota"], info["memory_limit"], info["default_threads"]) == (0.5, 4096, 1)
    machine.write("proc/self/cgroup", "0::/../elsewhere\n")  # what a namespace shows of a group outside of it
    assert machine.info()["memory_limit"] == 4096


def test_version_1(machine: Machine) -> None:
    machine.write(
        "proc/self/mountinfo",
        "30 1 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "31 1 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 1 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    )
    machine.write("proc/self/cgroup", "5:memory:/box/a\n4:cpu,cpuacct:/box\n0::/box\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "250000\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")  # none
    machine.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "3221225472\n")
    machine.write("sys/fs/cgroup/memory/box/a/memory.limit_in_bytes", "9223372036854771712\n")
    info = machine.info()
    assert (info["cpu_quota"], info["memory_limit"]) == (2.5, 3 << 30)
    assert info["default_threads"] == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", ["", "max", "max max\n", "0 0\n", "-5 100000\n", "a b c\n", "100000\n"])
def test_unreadable_limits_count_as_none(machine: Machine, text: str) -> None:
    machine.write("proc/self/mountinfo", "nonsense\n\n1 2\n" + V2_MOUNT)
    machine.write("proc/self/cgroup", "nonsense\n0::/a\n")
    machine.write("sys/fs/cgroup/a/cpu.max", text)
    machine.write("sys/fs/cgroup/a/memory.max", text)
    info = machine.info()
    assert info["cpu_quota"] is None


def test_hardware_threads_of_one_core_count_once(machine: Machine) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for core in cores:
        siblings = ",".join(map(str, cores))
        machine.write(f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", siblings + "\n")
    info = machine.info()
    assert info["physical_cores"] == info["default_threads"] == 1


def test_measured_limits() -> None:
    limits = _native.measure_limits(0.05, 1)
    assert set(limits) == {"read_gbps", "f32_gflops", "int8_gops"}
    assert all(0.01 < value < 1e6 for value in limits.values())
    with pytest.raises(ValueError, match=r"seconds must be 0\.01 to 60"):
        _native.measure_limits(0)
