"""Threads of a warp and a block: shuffles, votes, barriers, divergence, launches, memory."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from ptx.harness import HEADER, run_body
from ptx.interpreter import Interpreter, Memory
from ptx.parser import PtxError, parse

LANES = np.arange(32)
STORE = "st.global.u32 [place], r1; ret;"


def shuffle(mode: str, b: int, c: int, mask: int = 0xFFFFFFFF, threads: int = 32) -> np.ndarray:
    """Values 100 + lane, shuffled; the predicate adds 1000."""
    got = run_body(
        f"add.u32 r0, t, 100; shfl.sync.{mode}.b32 r1|p1, r0, {b}, {c}, {mask};"
        f"@p1 add.u32 r1, r1, 1000; {STORE}",
        threads=threads,
    )
    return got.astype(np.int64) - 100


def test_shuffle_down() -> None:
    expected = np.where(LANES < 28, LANES + 4 + 1000, LANES)
    np.testing.assert_array_equal(shuffle("down", 4, 31), expected)


def test_shuffle_up() -> None:
    expected = np.where(LANES >= 4, LANES - 4 + 1000, LANES)
    np.testing.assert_array_equal(shuffle("up", 4, 0), expected)


def test_shuffle_butterfly_of_two_warps() -> None:
    lanes = np.arange(64)
    expected = (lanes ^ 5) + 1000
    np.testing.assert_array_equal(shuffle("bfly", 5, 31, threads=64), expected)


def test_shuffle_from_a_lane() -> None:
    np.testing.assert_array_equal(shuffle("idx", 7, 31), np.full(32, 1007))


def test_shuffle_in_segments_of_eight() -> None:
    """c = 0x1807: segments of 8 lanes (segment mask 0x18, clamp 7)."""
    expected = np.where(LANES % 8 < 6, LANES + 2 + 1000, LANES)
    np.testing.assert_array_equal(shuffle("down", 2, 0x1807), expected)
    segment = LANES // 8 * 8
    np.testing.assert_array_equal(shuffle("idx", 11, 0x1807), segment + 3 + 1000)


def test_shuffle_of_a_lane_outside_the_mask_is_poison() -> None:
    got = run_body(
        f"setp.lt.u32 p0, t, 4; @!p0 bra END;shfl.sync.down.b32 r1, t, 2, 31, 15; {STORE} END: ret;"
    )
    assert got[:2].tolist() == [2, 3]
    assert got[2] == got[3] == 0xBEEF7FFF


def test_votes() -> None:
    ballot = run_body(f"setp.lt.u32 p0, t, 5; vote.sync.ballot.b32 r1, p0, -1; {STORE}")
    assert set(ballot.tolist()) == {0b11111}
    for mode, limit, expected in (
        ("all", 31, 0),
        ("all", 32, 1),
        ("any", 1, 1),
        ("any", 0, 0),
        ("uni", 0, 1),
        ("uni", 3, 0),
    ):
        got = run_body(
            f"setp.lt.u32 p0, t, {limit}; vote.sync.{mode}.pred p1, p0, -1;"
            f"selp.u32 r1, 1, 0, p1; {STORE}"
        )
        assert set(got.tolist()) == {expected}, (mode, limit)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("add.u32", 496), ("min.u32", 0), ("max.s32", 31), ("and.b32", 0), ("or.b32", 31)],
)
def test_reductions(mode: str, expected: int) -> None:
    got = run_body(f"redux.sync.{mode} r1, t, -1; {STORE}")
    assert set(got.tolist()) == {expected}


def test_xor_reduction_of_part_of_a_warp() -> None:
    got = run_body(
        f"setp.ge.u32 p0, t, 3; @p0 bra END; redux.sync.xor.b32 r1, t, 7; {STORE} END: ret;"
    )
    assert got[:4].tolist() == [3, 3, 3, 0]


def test_active_lanes() -> None:
    got = run_body("setp.lt.u32 p0, t, 3; @!p0 bra END; activemask.b32 r1;" + STORE + "END: ret;")
    assert got[:4].tolist() == [7, 7, 7, 0]


def test_special_registers() -> None:
    """Threads of a 3 x 5 x 4 block in a 2 x 2 grid."""
    text = f"""{HEADER}.visible .entry k(.param .u64 out)
{{ .reg .b32 a, b, c, d, e, f, n; .reg .b64 base, place;
mov.u32 a, %tid.x; mov.u32 b, %tid.y; mov.u32 c, %tid.z; mov.u32 d, %ctaid.x;
mov.u32 e, %ctaid.y; mov.u32 f, %nctaid.y; mad.lo.u32 n, c, 5, b; mad.lo.u32 n, n, 3, a;
mad.lo.u32 a, e, 2, d; mad.lo.u32 n, a, 60, n; ld.param.u64 base, [out];
mad.wide.u32 place, n, 4, base; mov.u32 b, %laneid; mov.u32 c, %warpid;
mad.lo.u32 b, c, 32, b; mad.lo.u32 b, f, 1000, b; st.global.u32 [place], b; ret; }}"""
    memory, out = Memory(), np.zeros(240, np.uint32)
    Interpreter(text).launch("k", (2, 2), (3, 5, 4), [memory.add(out)], memory)
    np.testing.assert_array_equal(out, np.tile(np.arange(60), 4) + 2000)


def test_lane_masks() -> None:
    for name, value in (("lt", (1 << LANES) - 1), ("ge", ~((1 << LANES) - 1) & 0xFFFFFFFF)):
        np.testing.assert_array_equal(run_body(f"mov.u32 r1, %lanemask_{name}; {STORE}"), value)


def test_loops_of_different_length_meet_again() -> None:
    """Each lane loops as often as its number says; then all shuffle together."""
    got = run_body(f"""mov.u32 r0, 0; mov.u32 r1, 0;
LOOP: setp.ge.u32 p0, r0, t; @p0 bra DONE; add.u32 r1, r1, r0; add.u32 r0, r0, 1; bra.uni LOOP;
DONE: shfl.sync.down.b32 r1, r1, 1, 31, -1; {STORE}""")
    sums = LANES * (LANES - 1) // 2
    np.testing.assert_array_equal(got, [*sums[1:], sums[31]])


def test_lanes_meet_whatever_the_order_of_the_code() -> None:
    """Half of the warp takes a way that lies behind the meeting in the text."""
    got = run_body(f"""mov.u32 r1, t; setp.lt.u32 p0, t, 16; @p0 bra FAR;
MEET: bar.warp.sync -1; shfl.sync.bfly.b32 r1, r1, 16, 31, -1; {STORE}
FAR: add.u32 r1, r1, 500; bra.uni MEET;""")
    np.testing.assert_array_equal(got, [*range(16, 32), *range(500, 516)])


def test_a_reduction_through_shared_memory_over_many_blocks() -> None:
    got = run_body(
        """.shared .align 16 .b8 sums[512];
mov.u64 w0, sums; mad.wide.u32 w1, t, 4, w0; add.u32 r0, size, 1; st.shared.u32 [w1], r0;
bar.sync 0; setp.ne.u32 p0, t, 0; @p0 bra END;
mov.u32 r1, 0; mov.u32 r2, 0;
LOOP: ld.shared.v4.u32 {r3, r4, r5, r6}, [w0]; add.u32 r1, r1, r3; add.u32 r1, r1, r4;
add.u32 r1, r1, r5; add.u32 r1, r1, r6; add.u64 w0, w0, 16; add.u32 r2, r2, 4;
setp.lt.u32 p0, r2, 128; @p0 bra LOOP; st.global.u32 [place], r1; END: ret;""",
        threads=128,
        blocks=300,  # more than run beside each other
    )
    np.testing.assert_array_equal(
        got.reshape(300, 128)[:, 0], 1 + np.arange(300 * 128).reshape(300, 128).sum(axis=1) + 127
    )


def test_local_memory_and_generic_addresses() -> None:
    got = run_body(
        f""".local .align 8 .b8 depot[16]; .shared .align 8 .b8 pool[256];
mov.u64 w0, depot; cvta.local.u64 w1, w0; st.u32 [w1+4], t; ld.local.u32 r0, [w0+4];
mov.u64 w2, pool; mad.wide.u32 w2, t, 8, w2; cvta.shared.u64 w3, w2;
setp.lt.u32 p0, t, 16; selp.b64 w4, w1, w3, p0; add.u32 r0, r0, 1; st.u32 [w4], r0;
ld.u32 r1, [w4]; {STORE}"""
    )
    np.testing.assert_array_equal(got, LANES + 1)


def test_module_variables() -> None:
    text = f"""{HEADER}.const .align 4 .b8 table[12] = {{1, 0, 0, 0, 2, 0, 0, 0, 255}};
.global .align 4 .u32 seven = 7;
.visible .entry k(.param .u64 .ptr .align 4 out, .param .align 8 .b8 pair[16])
{{ .reg .b32 a, b, c; .reg .b64 base, v; ld.param.u64 base, [out]; ld.const.u32 a, [table+8];
mov.u64 v, seven; ld.global.u32 b, [v]; ld.param.u32 c, [pair+12];
st.global.v2.u32 [base], {{a, b}}; st.global.u32 [base+8], c; ret; }}"""
    memory, out = Memory(), np.zeros(3, np.uint32)
    pair = np.array([1, 2, 3, 4], np.int32).tobytes()
    Interpreter(text).launch("k", 1, 1, [memory.add(out), pair], memory)
    assert out.tolist() == [255, 7, 4]
    assert len(memory.regions) == 1


def test_real_process_memory() -> None:
    """What a stand-in for the driver does: addresses are the process's own."""
    buffer = (ctypes.c_uint32 * 32)()
    memory, address = Memory(), ctypes.addressof(buffer)
    memory.map(address, ctypes.sizeof(buffer))
    text = f"""{HEADER}.visible .entry k(.param .u64 out, .param .f32 value)
{{ .reg .b32 t; .reg .f32 x; .reg .b64 w; mov.u32 t, %tid.x; ld.param.u64 w, [out];
mad.wide.u32 w, t, 4, w; ld.param.f32 x, [value]; st.global.f32 [w], x; ret; }}"""
    Interpreter(text).launch("k", 1, 32, [address, np.float32(1.5)], memory)
    assert set(buffer) == {0x3FC00000}
    memory.unmap(address)
    with pytest.raises(PtxError, match="bounds"):
        Interpreter(text).launch("k", 1, 32, [address, np.float32(1.5)], memory)


def test_memory_is_where_it_was_put() -> None:
    memory = Memory()
    first, second = memory.add(np.zeros(3, np.float16), shift=6), memory.add(np.zeros(0))
    assert first % 256 == 6
    assert second % 256 == 0
    assert second > first + 6
    with pytest.raises(ValueError, match="overlaps"):
        memory.map(first, 4)
    with pytest.raises(ValueError, match="contiguous"):
        memory.add(np.zeros((4, 4))[:, ::2])


def test_inline_assembly_has_names_of_its_own() -> None:
    got = run_body(
        "{.reg .b32 low; mov.b32 low, 5; add.u32 r1, low, t;}"
        "{.reg .b64 low; cvt.u64.u32 low, r1; cvt.u32.u64 r1, low;}" + STORE
    )
    np.testing.assert_array_equal(got, LANES + 5)


def test_the_parser_keeps_what_a_kernel_declares() -> None:
    module = parse(f"""{HEADER}// a comment
.visible .entry k(.param .u64 .ptr .global .align 16 a, .param .f32 b) .maxntid 128, 1, 1
.minnctapersm 5 {{ /* two
lines */ .reg .pred %p<3>; .shared .align 8 .b8 pool[2][16];
.pragma "nounroll";
$L__1: @!%p1 bra $L__1; mov.b32 %r1, -0x10; ret; }}""")
    kernel = module.kernels["k"]
    assert [(p.name, p.type, p.size, p.align) for p in kernel.parameters] == [
        ("a", "u64", 8, 8),
        ("b", "f32", 4, 4),
    ]
    assert kernel.tuning == {"maxntid": (128, 1, 1), "minnctapersm": (5,)}
    assert sorted(kernel.registers) == ["%p0", "%p1", "%p2"]
    assert kernel.variables["pool"].size == 32
    assert kernel.labels == {"$L__1": 0}
    branch, move = kernel.instructions[:2]
    assert branch.guard is not None
    assert branch.guard.negated
    assert branch.line == 9
    assert move.text == "mov.b32 %r1 , - 0x10"
