"""The Triton kernel without a GPU: interpreted, compiled for GPUs that are not there, and its launches counted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from torchtrack.testing.kernels import MODELS, mixed
from torchtrack.testing.syncguard import SyncGuard
from torchtrack.watch.kernels import reference

pytest.importorskip("triton")
CPU = torch.device("cpu")
LAZY = torch.device("lazy:0")
POINTERS = {"table": "*i64", "owners": "*i64", "factor": "*fp32", "counts": "*fp64", "partials": "*fp64"}


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from torchtrack.watch.kernels import triton

    monkeypatch.setattr(triton, "_layouts", type(triton._layouts)())
    monkeypatch.setattr(triton, "_broken", set())
    return triton


def test_it_conforms_in_the_interpreter() -> None:
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=58, check=False)
    assert done.returncode == 0, done.stderr


# -- compiled for GPUs that are not there ---------------------------------------------------------------


@pytest.fixture
def compile_for(triton: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    import triton as package
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = triton.triton_kernels

    def compile_for(target: tuple[str, Any, int], kind: Any, *, scaled: bool) -> Any:
        constants = {"KIND": kind, "SCALED": scaled, "TILE": kernels.TILE, "CHUNK": kernels.CHUNK}
        signature = {**POINTERS, "start": "i32", **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(kernels.count, signature, constants)
        return package.compile(source, GPUTarget(*target), dict(kernels.OPTIONS))

    return compile_for


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_it_compiles_for_nvidia_without_spilling(
    triton: ModuleType, compile_for: Callable[..., Any], capability: int, tmp_path: Path
) -> None:
    import triton as package

    tools = Path(package.__file__).parent / "backends" / "nvidia" / "bin"
    missing = [name for name in ("ptxas", "cuobjdump") if not (tools / name).exists()]
    if missing:
        pytest.skip(f"this triton brings no {' and no '.join(missing)}")
    for dtype, kind in triton.KINDS.items():
        compiled = compile_for(("cuda", capability, 32), kind, scaled=dtype != torch.bfloat16)
        assert "ld.global.v4.b32" in compiled.asm["ptx"]  # 16 bytes a thread
        binary = tmp_path / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        command = [str(tools / "cuobjdump"), "-res-usage", str(binary)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        used = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        sys.stdout.write(f"{capability} {dtype}: {used}, shared memory {compiled.metadata.shared}\n")  # pytest -rP
        assert (used["STACK"], used["LOCAL"]) == (0, 0)
        assert used["REG"] <= 64  # four programs of 256 threads a multiprocessor
        assert compiled.metadata.shared <= 8192


def test_it_compiles_for_amd_without_spilling(triton: ModuleType, compile_for: Callable[..., Any]) -> None:
    for kind in triton.KINDS.values():
        code = compile_for(("hip", "gfx942", 64), kind, scaled=True).asm["amdgcn"]
        spilled = dict(re.findall(r"\.(vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", code))
        assert spilled == {"vgpr_spill_count": "0", "private_segment_fixed_size": "0"}


# -- launches -------------------------------------------------------------------------------------------


class Device:
    """Counts launches in place of a device that runs them, and gives tensors that have no memory an address."""

    def __init__(self, triton: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launched: list[str] = []
        self.uploads = 0
        self.next_address = 1 << 40
        monkeypatch.setattr(triton, "_launch", self.launch)
        monkeypatch.setattr(triton, "_upload", self.upload)
        monkeypatch.setattr(triton, "_address", self.address)
        monkeypatch.setattr(triton, "_lies_here", lambda _: True)

    def launch(self, kernel: Any, programs: int, *_: Any) -> None:
        assert programs > 0
        self.launched.append(kernel.__name__)

    def upload(self, numbers: Any, device: torch.device) -> torch.Tensor:
        self.uploads += 1
        return torch.empty(len(numbers), dtype=torch.int64, device=device)

    def address(self, tensor: torch.Tensor) -> int:
        if not hasattr(tensor, "at"):
            tensor.at, self.next_address = self.next_address, self.next_address + tensor.numel() * 8 + 64  # type: ignore[attr-defined]
        at: int = tensor.at  # type: ignore[attr-defined]
        return at


@pytest.fixture
def device(triton: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(triton, monkeypatch)


def fake(sizes: list[int], *dtypes: torch.dtype) -> list[torch.Tensor]:
    return [torch.empty(n, dtype=dtype, device=LAZY) for n in sizes for dtype in dtypes]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,), (torch.bfloat16, torch.float32), (torch.float32, torch.float64)], ids=str
)
def test_a_call_is_a_launch_a_format_and_one_more_and_never_waits(
    triton: ModuleType, device: Device, dtypes: tuple[torch.dtype, ...], scaled: bool
) -> None:
    with FakeTensorMode():
        tensors = fake([5, 0, 70_000], *dtypes)
        multiplier = torch.empty((), device=LAZY) if scaled else None
        with SyncGuard() as guard:
            counts, moments = triton.statistics(tensors, multiplier)
        assert (counts.shape, counts.device, moments.shape) == ((len(tensors), 328), LAZY, (len(tensors), 4))
    ours = [dtype for dtype in dtypes if dtype in triton.KINDS]
    assert device.launched == ["count"] * len(ours) + ["finish"]
    assert guard.violations == []


@pytest.mark.parametrize("model", MODELS)
def test_a_model_takes_at_most_twelve_launches(triton: ModuleType, device: Device, model: str) -> None:
    with FakeTensorMode():
        tensors = [torch.empty(n, dtype=torch.bfloat16, device=LAZY) for n in MODELS[model]]
        with SyncGuard() as guard:
            triton.statistics(tensors, torch.empty((), device=LAZY))
    assert guard.violations == []
    assert guard.launches.total() + len(device.launched) + device.uploads <= 12


def test_tensors_that_lie_where_they_lay_are_not_told_of_again(triton: ModuleType, device: Device) -> None:
    with FakeTensorMode():
        parameters, gradients = fake([9, 70_000], torch.float32), fake([9, 70_000], torch.float32)
        for _ in range(3):
            triton.statistics(parameters)
            triton.statistics(gradients)
        assert device.uploads == 2
        triton.statistics([parameters[0], gradients[1]])
        assert device.uploads == 3


def test_only_the_latest_layouts_are_kept(triton: ModuleType, device: Device) -> None:
    with FakeTensorMode():
        lists = [fake([9], torch.float32) for _ in range(20)]
        for tensors in lists:
            triton.statistics(tensors)
    assert len(triton._layouts) == triton._MAX_LAYOUTS
    assert device.uploads == 20


def test_a_wrapper_whose_numbers_lie_elsewhere_is_never_read_at_its_address(triton: ModuleType) -> None:
    wrapped = AsyncCollectiveTensor(mixed(3000, torch.float32))
    assert wrapped.data_ptr() == 0
    assert torch.equal(triton.statistics([wrapped])[0], reference.statistics([wrapped])[0])
    assert triton._layouts == {}


# -- when it fails --------------------------------------------------------------------------------------


def test_a_device_on_which_it_fails_is_left_to_the_reference(
    triton: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("PTX was compiled with an unsupported toolchain")

    monkeypatch.setattr(triton, "_launch", fail)
    tensors = [mixed(3000, torch.float32)]
    for _ in range(3):
        assert torch.equal(triton.statistics(tensors)[0], reference.statistics(tensors)[0])
    [line] = caplog.messages
    assert "as triton fails on cpu: PTX was compiled" in line


def test_what_is_neither_contiguous_nor_1_d_or_not_floating_is_refused(triton: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"tensor 1 is 2-D torch\.float32 on cpu; expected a floating tensor"):
        triton.statistics([torch.ones(3), torch.ones(3, 3)[:, 1:]])
