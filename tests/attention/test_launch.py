from __future__ import annotations

from types import SimpleNamespace

import pytest

from medha_jax.attention import KernelAttention
from medha_jax.attention.gpu.launch import GpuTarget, LaunchError, parse_table, shipped_table

H200 = GpuTarget("NVIDIA H200", 90, 132)
A100 = GpuTarget("NVIDIA A100-SXM4-80GB", 80, 108)
ROW = dict(head_dim=128, dtype="bfloat16", queries=1, rows=16, keys=64, warps=4, stages=3, resident=2)


@pytest.mark.parametrize("target", [H200, A100], ids=lambda target: target.name)
@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_shipped_table_serves_every_size(target: GpuTarget, head_dim: int, dtype: str) -> None:
    for queries in (1, 2, 16, 64, 65, 8192 * 8):
        tile = shipped_table().find(target, head_dim, dtype, queries)
        assert tile.head_dim >= head_dim and tile.queries >= queries and not tile.measured


def test_eight_bits_need_hopper_rows() -> None:
    assert shipped_table().find(H200, 128, "float8_e4m3fn", 1).gpu == "sm90"
    with pytest.raises(LaunchError, match="no launch configuration for NVIDIA A100.*float8_e4m3fn.*sm90"):
        shipped_table().find(A100, 128, "float8_e4m3fn", 1)


def test_a_gpus_own_rows_come_first_then_the_nearest_capability() -> None:
    rows = [dict(ROW, gpu=gpu, stages=stages) for gpu, stages in (("sm80", 1), ("sm90", 2), ("NVIDIA H200", 3))]
    table = parse_table(rows)
    assert table.find(H200, 128, "bfloat16", 1).stages == 3
    assert table.find(GpuTarget("NVIDIA H100", 90, 132), 128, "bfloat16", 1).stages == 2
    assert table.find(GpuTarget("NVIDIA L40", 89, 142), 128, "bfloat16", 1).stages == 1
    with pytest.raises(LaunchError):
        table.find(GpuTarget("Tesla T4", 75, 40), 128, "bfloat16", 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(keys=100), "16 x 100; allowed are"),
        (dict(warps=3), "warps is 3; allowed are 1, 2, 4, 8, 16"),
        (dict(stages=0), "stages is 0"),
        (dict(blocks=7), "unknown settings blocks; allowed are dtype"),
        (dict(resident=None), "resident is None"),
    ],
)
def test_bad_rows_say_what_is_allowed(change: dict, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        parse_table([dict(ROW, gpu="sm90") | change])
    with pytest.raises(LaunchError, match="rows"):
        parse_table([{"gpu": "sm90"}])


def test_the_heads_of_a_group_lie_in_one_tile() -> None:
    attention = KernelAttention(H200, shipped_table(), heads=1, group=71, head_dim=64, dtype="bfloat16")
    launch = attention.launch(8, [(512, 4)])
    assert launch.decode.rows == 128 and launch.tile_tokens == 128 // 71
    assert launch.prompt_tiles >= 512 + 4


def test_room_follows_the_processors_not_the_heads() -> None:
    for heads in (1, 8):
        attention = KernelAttention(H200, shipped_table(), heads, 4, 128, "bfloat16")
        launch = attention.launch(64, [(2048, 8)])
        # two launches, each with room for three waves of programs: one a multiprocessor, and three for decodes
        assert not launch.together
        prefill, decode = 3 * 132, 3 * 3 * 132
        assert launch.part_rows * heads <= 2 * 128 * (prefill + heads) + 2 * 16 * (decode + heads)
        assert launch.items <= 64 + 2048 // 32 + 9 + prefill // heads + decode // heads + 2


def test_devices_that_are_no_nvidia_gpus_are_named() -> None:
    amd = SimpleNamespace(compute_capability="gfx942", device_kind="MI300X", platform="gpu", core_count=304)
    with pytest.raises(LaunchError, match="need an NVIDIA GPU; the mesh is on gpu \\(MI300X\\)"):
        GpuTarget.of(amd)
    nvidia = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H200", platform="gpu", core_count=132)
    assert GpuTarget.of(nvidia) == H200
