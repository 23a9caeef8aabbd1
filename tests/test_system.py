"""System metrics: right where they can be read, absent and quiet where they cannot."""

# ruff: noqa: ARG002, N802  # the fake has NVML's names and parameters
from __future__ import annotations

import logging
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import psutil
import pytest

from torchtrack.system import SystemSampler, describe_hardware

GPU_METRICS = {
    "system/gpu/utilization_percent": 97,
    "system/gpu/memory_used_bytes": 40 << 30,
    "system/gpu/memory_total_bytes": 80 << 30,
    "system/gpu/power_watts": 412.5,
    "system/gpu/temperature_celsius": 66,
    "system/gpu/sm_clock_mhz": 1755,
    "system/gpu/mem_clock_mhz": 2619,
    "system/gpu/throttle_reasons": 0,
    "system/gpu/throttle_thermal": 0,
    "system/gpu/throttle_power": 0,
    "system/gpu/ecc_corrected": 3,
    "system/gpu/ecc_uncorrected": 1,
}
RATE_METRICS = {
    "system/gpu/nvlink_tx_bytes_per_s",
    "system/gpu/nvlink_rx_bytes_per_s",
    "system/gpu/pcie_tx_bytes_per_s",
    "system/gpu/pcie_rx_bytes_per_s",
}
NODE_METRICS = {
    "system/memory/percent",
    "system/memory/used_bytes",
    "system/swap/percent",
    "system/swap/used_bytes",
    "system/disk/percent",
}


class FakeNvmlError(Exception):
    pass


class FakeNvml:
    """What of pynvml is used, for a node of four GPUs whose handles are their names. The first answers everything."""

    NVMLError = FakeNvmlError
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX = 138
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 139
    NVML_FI_DEV_PCIE_COUNT_TX_BYTES = 197
    NVML_FI_DEV_PCIE_COUNT_RX_BYTES = 198

    def __init__(self, gpus: int = 4, *, refuses: frozenset[str] = frozenset(), throttle_reasons: int = 0) -> None:
        self.uuids = [f"GPU-{letter * 8}-0000" for letter in "abcd"[:gpus]]
        self.refuses = refuses
        self.throttle_reasons = throttle_reasons
        self.calls: list[str] = []
        self.connections = 0
        self.fields = dict.fromkeys((138, 139, 197, 198), 0)
        self.asked: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("nvml"):
            return value

        def called(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.refuses:
                raise FakeNvmlError("Not Supported")
            if arguments and isinstance(arguments[0], str) and name != "nvmlDeviceGetHandleByUUID":
                self.asked.add(arguments[0])
            return value(*arguments)

        return called

    def nvmlInit(self) -> None:
        self.connections += 1

    def nvmlShutdown(self) -> None:
        self.connections -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.86.15"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return f"instance {uuid}"

    def nvmlDeviceGetUUID(self, gpu: str) -> str:
        return self.uuids[int(gpu.split()[1])]

    def nvmlDeviceGetName(self, gpu: str) -> bytes:
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUtilizationRates(self, gpu: str) -> Any:
        return types.SimpleNamespace(gpu=97, memory=30)

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> Any:
        return types.SimpleNamespace(used=40 << 30, total=80 << 30)

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 412_500

    def nvmlDeviceGetTemperature(self, gpu: str, sensor: int) -> int:
        return 66

    def nvmlDeviceGetClockInfo(self, gpu: str, clock: int) -> int:
        return {1: 1755, 2: 2619}[clock]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: str) -> int:
        return self.throttle_reasons

    def nvmlDeviceGetTotalEccErrors(self, gpu: str, kind: int, counter: int) -> int:
        return {0: 3, 1: 1}[kind]

    def nvmlDeviceGetFieldValues(self, gpu: str, fields: list[tuple[int, int]]) -> list[Any]:
        return [
            types.SimpleNamespace(
                nvmlReturn=0 if field in self.fields else 3,
                valueType=3,
                value=types.SimpleNamespace(ullVal=self.fields.get(field)),
            )
            for field, _ in fields
        ]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def sampler(
    nvml: FakeNvml | None = None, local_rank: int = 0, visible: str | None = None, **options: Any
) -> SystemSampler:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return SystemSampler(
        local_rank, pynvml=nvml or FakeNvml(gpus=0), environ=environ, **{"node_leader": False} | options
    )


def test_a_rank_reports_its_gpu() -> None:
    readings = sampler(FakeNvml()).sample()
    assert {name: value for name, value in readings.items() if name.startswith("system/gpu/")} == GPU_METRICS


def test_a_rank_reports_its_process() -> None:
    readings = sampler().sample()
    assert readings["system/process/memory_rss_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
    assert readings["system/process/threads"] >= 1


@pytest.mark.parametrize(
    ("reasons", "thermal", "power"), [(0x1, 0, 0), (0x20, 1, 0), (0x40, 1, 0), (0x4, 0, 1), (0x80, 0, 1), (0xC4, 1, 1)]
)
def test_thermal_and_power_throttling_are_told_apart(reasons: int, thermal: int, power: int) -> None:
    readings = sampler(FakeNvml(throttle_reasons=reasons)).sample()
    assert readings["system/gpu/throttle_reasons"] == reasons
    assert (readings["system/gpu/throttle_thermal"], readings["system/gpu/throttle_power"]) == (thermal, power)


@pytest.mark.parametrize(
    ("visible", "local_rank", "gpu"),
    [
        (None, 2, "gpu 2"),
        ("3,1", 0, "gpu 3"),
        ("3,1", 1, "gpu 1"),
        (" 2 , 0 ", 1, "gpu 0"),
        ("2", 3, "gpu 2"),  # each rank was given one device
        ("0,1", 3, "gpu 1"),  # two ranks share each
        ("1,-1,2", 1, "gpu 1"),  # what follows an unknown device is not visible
        ("1,9,2", 1, "gpu 1"),
        ("GPU-cccccccc-0000", 0, "gpu 2"),
        ("GPU-bbbb,GPU-aaaa", 1, "gpu 0"),  # the beginning is enough
        ("MIG-4d1a", 0, "instance MIG-4d1a"),
    ],
)
def test_the_gpu_is_the_one_cuda_gives_this_rank(visible: str | None, local_rank: int, gpu: str) -> None:
    nvml = FakeNvml()
    found = sampler(nvml, local_rank, visible)
    found.sample()
    nvml.asked.clear()
    found.sample()
    assert nvml.asked == {gpu}


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles", "GPU-zz", "GPU-"])
def test_no_visible_device_means_no_gpu_metrics(visible: str) -> None:
    assert not [name for name in sampler(FakeNvml(), visible=visible).sample() if "gpu" in name]


def test_a_machine_without_gpu_driver_has_no_gpu_metrics() -> None:
    readings = sampler(FakeNvml(refuses=frozenset(["nvmlInit"]))).sample()
    assert not [name for name in readings if "gpu" in name]
    assert "system/process/threads" in readings


def test_an_unsupported_call_costs_only_its_own_metric() -> None:
    readings = sampler(FakeNvml(refuses=frozenset(["nvmlDeviceGetUtilizationRates"]))).sample()
    assert GPU_METRICS.keys() - readings.keys() == {"system/gpu/utilization_percent"}


def test_an_unsupported_call_is_not_made_again() -> None:
    nvml = FakeNvml(refuses=frozenset(["nvmlDeviceGetPowerUsage"]))
    found = sampler(nvml)
    for _ in range(3):
        found.sample()
    assert nvml.calls.count("nvmlDeviceGetPowerUsage") == 1


def test_what_is_absent_is_told_in_debug_lines_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "torchtrack"):
        sampler(FakeNvml(refuses=frozenset(["nvmlDeviceGetPowerUsage"]))).sample()
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


def test_link_traffic_is_a_rate_between_two_samples() -> None:
    clock = Clock()
    nvml = FakeNvml()
    found = sampler(nvml, clock=clock)
    assert not RATE_METRICS & found.sample().keys()
    clock.now += 2
    nvml.fields |= {138: 10, 139: 20, 197: 3000, 198: 4000}
    readings = found.sample()
    assert {name: readings[name] for name in RATE_METRICS} == {
        "system/gpu/nvlink_tx_bytes_per_s": 10 * 1024 / 2,
        "system/gpu/nvlink_rx_bytes_per_s": 20 * 1024 / 2,
        "system/gpu/pcie_tx_bytes_per_s": 1500,
        "system/gpu/pcie_rx_bytes_per_s": 2000,
    }


def test_a_counter_that_went_back_gives_no_rate() -> None:
    clock = Clock()
    nvml = FakeNvml()
    found = sampler(nvml, clock=clock)
    nvml.fields[197] = 1000
    found.sample()
    clock.now += 1
    nvml.fields[197] = 5
    assert "system/gpu/pcie_tx_bytes_per_s" not in found.sample()
    clock.now += 1
    nvml.fields[197] = 25
    assert found.sample()["system/gpu/pcie_tx_bytes_per_s"] == 20


def test_a_gpu_without_nvlink_has_no_nvlink_metrics() -> None:
    clock = Clock()
    nvml = FakeNvml()
    del nvml.fields[138], nvml.fields[139]
    found = sampler(nvml, clock=clock)
    found.sample()
    clock.now += 1
    assert found.sample().keys() & RATE_METRICS == {"system/gpu/pcie_tx_bytes_per_s", "system/gpu/pcie_rx_bytes_per_s"}


def test_process_cpu_is_the_share_of_one_core_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    spent = types.SimpleNamespace(user=1.0, system=0.5)
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda _: spent)
    found = sampler(clock=clock)
    assert "system/process/cpu_percent" not in found.sample()
    clock.now += 2
    spent.user += 2.5
    spent.system += 0.5
    assert found.sample()["system/process/cpu_percent"] == 150


def test_only_the_node_leader_reports_the_node(tmp_path: Path) -> None:
    leader = sampler(node_leader=True, folder=tmp_path).sample()
    assert leader.keys() >= NODE_METRICS
    assert 0 <= leader["system/disk/percent"] <= 100
    assert not NODE_METRICS & sampler(node_leader=False).sample().keys()


def test_node_rates_come_with_the_second_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    disk = types.SimpleNamespace(read_bytes=10, write_bytes=20)
    card = types.SimpleNamespace(bytes_sent=100, bytes_recv=200)
    loopback = types.SimpleNamespace(bytes_sent=7, bytes_recv=7)
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: disk)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: {"eth0": card, "lo": loopback})
    found = sampler(node_leader=True, clock=clock)
    assert not [name for name in found.sample() if name.endswith("_per_s")]
    clock.now += 10
    disk.read_bytes, disk.write_bytes, card.bytes_sent, card.bytes_recv = 1010, 2020, 3100, 4200
    loopback.bytes_sent = 1_000_000
    readings = found.sample()
    assert {name: value for name, value in readings.items() if name.endswith("_per_s")} == {
        "system/disk/read_bytes_per_s": 100,
        "system/disk/write_bytes_per_s": 200,
        "system/network/sent_bytes_per_s": 300,
        "system/network/received_bytes_per_s": 400,
    }


def test_node_cpu_is_the_busy_share_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times()
    zero = times._replace(**dict.fromkeys(times._fields, 0.0))
    states = iter([zero, zero._replace(user=30.0, idle=70.0)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(states))
    found = sampler(node_leader=True)
    assert "system/cpu/percent" not in found.sample()
    assert found.sample()["system/cpu/percent"] == 30


@pytest.mark.parametrize("source", ["disk_io_counters", "net_io_counters", "swap_memory", "disk_usage", "cpu_times"])
def test_a_node_source_that_is_refused_is_left_out(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not in this container")

    monkeypatch.setattr(psutil, source, refuse)
    assert "system/memory/percent" in sampler(node_leader=True).sample()


def test_a_machine_without_disks_has_no_disk_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(psutil, "disk_io_counters", lambda **_: None)
    found = sampler(node_leader=True, clock=clock)
    found.sample()
    clock.now += 1
    assert "system/disk/read_bytes_per_s" not in found.sample()


def test_the_driver_is_connected_at_the_first_sample_and_released_once() -> None:
    nvml = FakeNvml()
    found = sampler(nvml)
    assert nvml.connections == 0
    found.sample()
    assert nvml.connections == 1
    found.close()
    found.close()
    assert nvml.connections == 0


def test_describe_hardware_tells_cpu_memory_and_gpus() -> None:
    nvml = FakeNvml(gpus=2)
    facts = describe_hardware(nvml)
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30}
    assert facts["gpus"] == [gpu, gpu]
    assert facts["driver"] == "570.86.15"
    assert facts["cpu"]["logical_cores"] == psutil.cpu_count()
    assert facts["cpu"]["model"]
    assert facts["memory_bytes"] == psutil.virtual_memory().total
    assert nvml.connections == 0


def test_describe_hardware_without_driver_has_no_gpus() -> None:
    facts = describe_hardware(FakeNvml(refuses=frozenset(["nvmlInit"])))
    assert (facts["gpus"], facts["driver"]) == ([], None)


def test_every_nvml_name_used_exists_in_the_real_binding() -> None:
    import pynvml

    used = [name for name in vars(FakeNvml) if name.lower().startswith("nvml")]
    assert not [name for name in used if not hasattr(pynvml, name)]


def test_the_real_binding_is_quiet_on_any_machine(capfd: pytest.CaptureFixture[str]) -> None:
    found = SystemSampler(0, node_leader=True)
    for _ in range(2):
        assert all(isinstance(value, int | float) for value in found.sample().values())
    found.close()
    assert capfd.readouterr() == ("", "")


def test_sampling_imports_neither_torch_nor_anything_gpu_before_the_first_sample() -> None:
    code = (
        "import sys; from torchtrack.system import SystemSampler; found = SystemSampler(0, node_leader=True)\n"
        "assert 'pynvml' not in sys.modules; found.sample(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)


def test_what_torch_has_allocated_is_told_once_it_uses_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {
        "allocated_bytes.all.current": 5, "reserved_bytes.all.current": 8, "allocated_bytes.all.peak": 7,
        "num_alloc_retries": 1,
    }  # fmt: skip
    uses_gpu = False
    cuda = types.SimpleNamespace(
        is_initialized=lambda: uses_gpu, device_count=lambda: 2, memory_stats=lambda index: stats if index == 1 else {}
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    sampler = SystemSampler(0, node_leader=False, pynvml=FakeNvml())
    assert not any(name.startswith("system/torch/") for name in sampler.sample())
    uses_gpu = True
    told = {name: value for name, value in sampler.sample().items() if name.startswith("system/torch/")}
    assert told == {
        "system/torch/memory_allocated_bytes": 5,
        "system/torch/memory_reserved_bytes": 8,
        "system/torch/memory_peak_bytes": 7,
        "system/torch/memory_alloc_retries": 1,
    }
    sampler.close()
