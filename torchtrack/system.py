"""System metrics of a rank: its process, its GPU and, on one rank of each node, the node.

Everything here is quiet where it is absent: a source that fails once (no GPU, no permission, a call the driver does not
know) is left out from then on. Rates are differences over the monotonic clock, so the first sample has none. Sampling
belongs in a background thread; the calls that wait, wait without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

logger = logging.getLogger("torchtrack")

Readings = dict[str, float]

_THERMAL = 0x20 | 0x40  # slowdown by software, by hardware
_POWER = 0x04 | 0x80  # the power cap, the external brake
_ALL_LINKS = 0xFFFFFFFF
_ALLOCATOR = {
    "system/torch/memory_allocated_bytes": "allocated_bytes.all.current",
    "system/torch/memory_reserved_bytes": "reserved_bytes.all.current",
    "system/torch/memory_peak_bytes": "allocated_bytes.all.peak",
    "system/torch/memory_alloc_retries": "num_alloc_retries",
}
_UNSIGNED_INT = 1  # NVML's value types; the counters read here come as one of unsigned int, long, long long


class SystemSampler:
    """Reads the system metrics of one rank. Called from one thread.

    Args:
        local_rank: this process's rank on its node; picks its GPU among the visible ones.
        node_leader: whether this rank also reports the node's CPU, memory, disks and network.
        folder: the folder whose file system's fullness is reported; the working directory by default.
        environ: where CUDA_VISIBLE_DEVICES is read; os.environ by default.
        pynvml: the NVML binding; the installed module by default.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        local_rank: int,
        *,
        node_leader: bool,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
        pynvml: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
        self._nvml = _Nvml(pynvml)
        self._rates = _Rates(clock)
        self._find_gpu: Callable[[], Any] | None = lambda: _own_gpu(self._nvml.start(), visible, local_rank)
        self._sources: list[Callable[[], Readings]] = _process_sources(self._rates)
        if node_leader:
            self._sources += _node_sources(self._rates, folder or Path())

    def sample(self) -> dict[str, float]:
        """Every metric that can be read now, by name. The first call also connects to the GPU driver."""
        if self._find_gpu is not None:
            find, self._find_gpu = self._find_gpu, None
            self._sources += self._gpu_sources(find)
        readings: Readings = {}
        for source in tuple(self._sources):
            try:
                readings.update(source())
            except self._nvml.errors as error:
                logger.debug("system metrics: %s is left out: %r", source.__qualname__, error)
                self._sources.remove(source)
        return readings

    def close(self) -> None:
        """Disconnect from the GPU driver."""
        self._nvml.stop()

    def _gpu_sources(self, find: Callable[[], Any]) -> list[Callable[[], Readings]]:
        try:
            gpu = find()
        except self._nvml.errors as error:
            logger.debug("no GPU metrics: %r", error)
            return []
        return [] if gpu is None else _gpu_sources(self._nvml.binding, gpu, self._rates)


class _Nvml:
    """The connection to the GPU driver: made late, closed once."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.errors: tuple[type[Exception], ...] = (
            OSError,
            psutil.Error,
            RuntimeError,
            ValueError,
            AttributeError,
            ImportError,
            Warning,
        )
        self._started = False

    def start(self) -> Any:
        if self.binding is None:
            import pynvml  # ctypes and 8000 lines: only where metrics are wanted

            self.binding = pynvml
        self.errors = (*self.errors, self.binding.NVMLError)
        self.binding.nvmlInit()
        self._started = True
        return self.binding

    def stop(self) -> None:
        if self._started:
            self._started = False
            with contextlib.suppress(*self.errors):
                self.binding.nvmlShutdown()


class _Rates:
    """Turns counters into rates per second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, float]] = {}

    def per_second(self, name: str, counter: float) -> Readings:
        """The counter's rate since its last reading; nothing at the first, nor where it went back."""
        now = self._clock()
        then, before = self._last.get(name, (now, counter))
        self._last[name] = (now, counter)
        return {name: (counter - before) / (now - then)} if now > then and counter >= before else {}


def _process_sources(rates: _Rates) -> list[Callable[[], Readings]]:
    process = psutil.Process()

    def cpu() -> Readings:
        times = process.cpu_times()
        return rates.per_second("system/process/cpu_percent", 100 * (times.user + times.system))

    def memory() -> Readings:
        return {"system/process/memory_rss_bytes": process.memory_info().rss}

    def threads() -> Readings:
        return {"system/process/threads": process.num_threads()}

    return [cpu, memory, threads, _torch_memory]


def _torch_memory() -> Readings:
    """What torch's allocator says of this process's GPU memory: kept on the host, so that nothing waits."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)
    if is_initialized is None or not is_initialized():
        return {}
    every = [cuda.memory_stats(index) for index in range(cuda.device_count())]
    return {name: sum(stats.get(key, 0) for stats in every) for name, key in _ALLOCATOR.items()}


def _node_sources(rates: _Rates, folder: Path) -> list[Callable[[], Readings]]:
    busy_share = _Share()

    def cpu() -> Readings:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time in user and nice too.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return busy_share.percent("system/cpu/percent", total - idle, total)

    def memory() -> Readings:
        state = psutil.virtual_memory()
        return {"system/memory/percent": state.percent, "system/memory/used_bytes": state.used}

    def swap() -> Readings:
        state = psutil.swap_memory()
        return {"system/swap/percent": state.percent, "system/swap/used_bytes": state.used}

    def disk() -> Readings:
        state = psutil.disk_io_counters(nowrap=False)
        if state is None:
            raise OSError("no disks")
        read = rates.per_second("system/disk/read_bytes_per_s", state.read_bytes)
        return read | rates.per_second("system/disk/write_bytes_per_s", state.write_bytes)

    def disk_usage() -> Readings:
        return {"system/disk/percent": psutil.disk_usage(str(folder)).percent}

    def network() -> Readings:
        cards = psutil.net_io_counters(pernic=True, nowrap=False)
        outside = [counters for name, counters in cards.items() if not name.startswith("lo")]
        sent = rates.per_second("system/network/sent_bytes_per_s", sum(each.bytes_sent for each in outside))
        received = sum(each.bytes_recv for each in outside)
        return sent | rates.per_second("system/network/received_bytes_per_s", received)

    return [cpu, memory, swap, disk, disk_usage, network]


class _Share:
    """The part of one growing total that another is, since the last reading."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def percent(self, name: str, part: float, total: float) -> Readings:
        last, self._last = self._last, (part, total)
        if last is None or total <= last[1]:
            return {}
        return {name: min(100.0, max(0.0, 100 * (part - last[0]) / (total - last[1])))}


def _own_gpu(nvml: Any, visible: str | None, local_rank: int) -> Any:
    """NVML's handle of this rank's GPU, or None.

    CUDA numbers the devices of CUDA_VISIBLE_DEVICES from 0 in the order given and stops at the first it cannot find.
    More ranks than visible devices means each rank was given its own (or they share): the count wraps around.
    """
    if visible is None:
        count = nvml.nvmlDeviceGetCount()
        return nvml.nvmlDeviceGetHandleByIndex(local_rank % count) if count else None
    handles = list(_visible_gpus(nvml, visible))
    return handles[local_rank % len(handles)] if handles else None


def _visible_gpus(nvml: Any, visible: str) -> Iterator[Any]:
    everything = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    for name in visible.split(","):
        name = name.strip()
        if name.isdecimal() and int(name) < len(everything):
            yield everything[int(name)]
        elif name.startswith("MIG-"):
            yield nvml.nvmlDeviceGetHandleByUUID(name)
        elif name.startswith("GPU-"):
            # The beginning of a UUID is enough for CUDA, not for NVML.
            same = [handle for handle in everything if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name)]
            if len(same) != 1:
                return
            yield same[0]
        else:
            return


def _gpu_sources(nvml: Any, gpu: Any, rates: _Rates) -> list[Callable[[], Readings]]:
    def utilization() -> Readings:
        return {"system/gpu/utilization_percent": nvml.nvmlDeviceGetUtilizationRates(gpu).gpu}

    def memory() -> Readings:
        state = nvml.nvmlDeviceGetMemoryInfo(gpu)
        return {"system/gpu/memory_used_bytes": state.used, "system/gpu/memory_total_bytes": state.total}

    def power() -> Readings:
        return {"system/gpu/power_watts": nvml.nvmlDeviceGetPowerUsage(gpu) / 1000}

    def temperature() -> Readings:
        celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
        return {"system/gpu/temperature_celsius": celsius}

    def throttling() -> Readings:
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
        return {
            "system/gpu/throttle_reasons": reasons,
            "system/gpu/throttle_thermal": float(bool(reasons & _THERMAL)),
            "system/gpu/throttle_power": float(bool(reasons & _POWER)),
        }

    return [utilization, memory, power, temperature, throttling, *_clocks(nvml, gpu), *_errors(nvml, gpu)] + [
        _link(nvml, gpu, rates, name, field, unit) for name, field, unit in _link_counters(nvml)
    ]


def _clocks(nvml: Any, gpu: Any) -> list[Callable[[], Readings]]:
    def sm_clock() -> Readings:
        return {"system/gpu/sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM)}

    def mem_clock() -> Readings:
        return {"system/gpu/mem_clock_mhz": nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM)}

    return [sm_clock, mem_clock]


def _errors(nvml: Any, gpu: Any) -> list[Callable[[], Readings]]:
    """Errors of the GPU's memory since the driver was loaded."""

    def count(kind: int) -> float:
        return float(nvml.nvmlDeviceGetTotalEccErrors(gpu, kind, nvml.NVML_VOLATILE_ECC))

    def corrected() -> Readings:
        return {"system/gpu/ecc_corrected": count(nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED)}

    def uncorrected() -> Readings:
        return {"system/gpu/ecc_uncorrected": count(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)}

    return [corrected, uncorrected]


def _link_counters(nvml: Any) -> list[tuple[str, int, int]]:
    """Metric, NVML field and bytes a unit of each traffic counter this binding knows.

    nvmlDeviceGetPcieThroughput is not used: it measures for 20 ms while the caller waits.
    """
    fields = [
        ("system/gpu/nvlink_tx_bytes_per_s", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", 1024),
        ("system/gpu/nvlink_rx_bytes_per_s", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX", 1024),
        ("system/gpu/pcie_tx_bytes_per_s", "NVML_FI_DEV_PCIE_COUNT_TX_BYTES", 1),
        ("system/gpu/pcie_rx_bytes_per_s", "NVML_FI_DEV_PCIE_COUNT_RX_BYTES", 1),
    ]
    return [(name, getattr(nvml, field), unit) for name, field, unit in fields if hasattr(nvml, field)]


def _link(nvml: Any, gpu: Any, rates: _Rates, name: str, field: int, unit: int) -> Callable[[], Readings]:
    scope = _ALL_LINKS if "nvlink" in name else 0

    def traffic() -> Readings:
        answer = nvml.nvmlDeviceGetFieldValues(gpu, [(field, scope)])[0]
        if answer.nvmlReturn != 0:
            raise nvml.NVMLError(answer.nvmlReturn)
        count = answer.value.uiVal if answer.valueType == _UNSIGNED_INT else answer.value.ullVal
        return rates.per_second(name, count * unit)

    return traffic


def describe_hardware(pynvml: Any = None) -> dict[str, Any]:
    """What the node is made of: CPU, memory, all its GPUs and the GPU driver's version."""
    facts: dict[str, Any] = {
        "cpu": {
            "model": _cpu_model(),
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
        },
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [],
        "driver": None,
    }
    connection = _Nvml(pynvml)
    try:
        nvml = connection.start()
        facts["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
        for index in range(nvml.nvmlDeviceGetCount()):
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu).total
            facts["gpus"].append({"name": _text(nvml.nvmlDeviceGetName(gpu)), "memory_bytes": memory})
    except connection.errors as error:
        logger.debug("no GPU described: %r", error)
    finally:
        connection.stop()
    return facts


def _cpu_model() -> str:
    if sys.platform == "linux":
        with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(name: str | bytes) -> str:
    """Older bindings answer with bytes."""
    return name.decode(errors="replace") if isinstance(name, bytes) else name
