"""Every rule whose breach the interpreter reports, with the line of the PTX it names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ptx.harness import HEADER, run_body
from ptx.interpreter import Interpreter, Memory
from ptx.parser import PtxError, parse

FIRST_LINE = 15  # of a body within run_body's text
POOL = ".shared .align 16 .b8 pool[256]; mov.u64 w0, pool; mad.wide.u32 w1, t, 4, w0;\n"


def fault(kind: str, line: int | None, body: str, **options: Any) -> str:
    """Assert that the body (its lines counted from 0) breaks a rule; return the message."""
    with pytest.raises(PtxError) as caught:
        run_body(body, **options)
    assert caught.value.kind == kind, caught.value
    if line is not None:
        assert caught.value.line == FIRST_LINE + line, caught.value
    return str(caught.value)


# Global memory


def test_a_load_past_the_end() -> None:
    message = fault("bounds", 1, "mov.u32 r0, 0;\nld.global.u32 r1, [place+4]; ret;")
    assert message == (
        "PTX line 16: bounds: 4 bytes at 0x1000000080: byte 128 of region 0, which has 128"
    )


def test_a_store_before_the_beginning() -> None:
    fault("bounds", 0, "st.global.u32 [place+-4], t; ret;")


def test_a_null_pointer() -> None:
    fault("bounds", 0, "mov.b64 w0, 0; ld.global.u32 r0, [w0]; ret;")


def test_half_of_a_vector_past_the_end() -> None:
    body = "add.u64 w0, out, 112; ld.global.v4.u32 {r0, r1, r2, r3}, [w0]; ret;"
    run_body(body)  # the last 16 bytes are there
    fault("bounds", 0, body, threads=30)


def test_a_misaligned_vector() -> None:
    message = fault("alignment", 0, "ld.global.v4.u32 {r0, r1, r2, r3}, [out+8]; ret;")
    assert "16 bytes of global memory at 0x1000000008" in message


def test_a_misaligned_store() -> None:
    fault("alignment", 0, "st.global.u32 [out+2], t; ret;")


def test_a_store_to_read_only_memory() -> None:
    text = f"""{HEADER}.visible .entry k(.param .u64 p)
{{ .reg .b64 w; ld.param.u64 w, [p]; st.global.u64 [w], w; ret; }}"""
    memory = Memory()
    pointer = memory.add(np.zeros(8), writable=False, name="logits")
    with pytest.raises(PtxError, match="bounds: writes to logits, which is read-only"):
        Interpreter(text).launch("k", 1, 1, [pointer], memory)


def test_two_threads_write_one_place() -> None:
    fault("race", 0, "st.global.u32 [out], t; ret;")
    run_body("st.global.u32 [out], t; ret;", races=False)


def test_two_blocks_write_one_place() -> None:
    body = "setp.ne.u32 p0, t, 0; @p0 bra END; st.global.u32 [out], t; END: ret;"
    run_body(body, threads=4, blocks=1)
    fault("race", 0, body, threads=4, blocks=2)


def test_a_thread_reads_what_another_wrote() -> None:
    """A barrier orders the threads of a block, and nothing orders those of two."""
    body = """st.global.u32 [place], t;
{} xor.b32 r0, t, 32; mad.wide.u32 w0, r0, 4, out; ld.global.u32 r1, [w0]; ret;"""
    fault("race", 1, body.format(""), threads=64)
    run_body(body.format("bar.sync 0;"), threads=64)


def test_addresses_below_zero() -> None:
    """4 bytes before a null pointer and before the block's shared memory: 2^64 - 4."""
    fault("bounds", 0, "mov.b64 w0, 0; ld.global.u32 r0, [w0+-4]; ret;")
    fault("bounds", 1, POOL + "st.shared.u32 [w1+-4], t; ret;", blocks=2)


# Shared and local memory


def test_shared_memory_out_of_bounds() -> None:
    fault("bounds", 1, POOL + "st.shared.u32 [w1+132], t; ret;")


def test_shared_memory_misaligned() -> None:
    fault("alignment", 1, POOL + "st.shared.u64 [w1], w0; ret;")


def test_shared_memory_that_nobody_wrote() -> None:
    fault("uninitialised", 1, POOL + "ld.shared.u32 r0, [w1]; ret;")
    fault("uninitialised", 2, POOL + "st.shared.u16 [w1], t;\nld.shared.u32 r0, [w1]; ret;")


def test_shared_memory_of_another_block_is_not_seen() -> None:
    body = (
        POOL + "setp.eq.u32 p0, block, 0; @p0 st.shared.u32 [w1], t;\nld.shared.u32 r0, [w1]; ret;"
    )
    run_body(body, blocks=1)
    fault("uninitialised", 2, body, blocks=2)


def test_local_memory_that_nobody_wrote() -> None:
    fault("uninitialised", 0, ".local .b32 x; mov.u64 w0, x; ld.local.u32 r0, [w0]; ret;")


def test_a_register_that_nobody_wrote() -> None:
    message = fault("uninitialised", 1, "mov.b32 r0, 0;\nadd.u32 r0, r0, r1; ret;")
    assert "register r1" in message


SHARE = """st.shared.u32 [w1], t;
{} xor.b32 r0, t, {}; mad.wide.u32 w2, r0, 4, w0; ld.shared.u32 r1, [w2];
{} st.shared.u32 [w1], r1; ret;"""


@pytest.mark.parametrize("other", [32, 63])
def test_a_missing_barrier_between_warps(other: int) -> None:
    """Whatever order the warps run in: no barrier between a write and a read, or back."""
    barrier = "bar.sync 0;"
    run_body(POOL + SHARE.format(barrier, other, barrier), threads=64)
    fault("race", 2, POOL + SHARE.format("", other, barrier), threads=64)
    fault("race", 3, POOL + SHARE.format(barrier, other, ""), threads=64)
    warp = "bar.warp.sync -1;"
    fault("race", 2, POOL + SHARE.format(warp, other, barrier), threads=64)


def test_a_missing_barrier_within_a_warp() -> None:
    """Lanes of a warp are not ordered by themselves, unless lockstep is asked for."""
    warp = "bar.warp.sync -1;"
    run_body(POOL + SHARE.format(warp, 1, warp))
    fault("race", 2, POOL + SHARE.format("", 1, warp))
    fault("race", 3, POOL + SHARE.format(warp, 1, ""))
    run_body(POOL + SHARE.format("", 1, ""), lockstep=True)


def test_two_warps_write_one_place() -> None:
    body = POOL + "rem.u32 r0, t, 32; setp.eq.u32 p0, r0, 0; @p0 st.shared.u32 [w0], t; ret;"
    run_body(body, threads=32)
    fault("race", 1, body, threads=64)


# Warps and barriers


def test_a_mask_that_names_lanes_that_left() -> None:
    body = """setp.ge.u32 p0, t, 16; @p0 ret;
shfl.sync.down.b32 r1, t, 1, 31, {}; ret;"""
    run_body(body.format(0xFFFF))
    message = fault("mask", 1, body.format(-1))
    assert message.endswith(
        "lanes that mask 0xffffffff names never come: thread 16 left the kernel"
    )


def test_a_mask_that_names_lanes_that_are_not_there() -> None:
    body = "setp.eq.u32 p0, t, 0;\nvote.sync.any.pred p1, p0, {}; ret;"
    run_body(body.format(0xFF), threads=8)
    assert "do not exist" in fault("mask", 1, body.format(0x1FF), threads=8)
    fault("mask", 1, body.format(-1), threads=40)


def test_a_mask_that_does_not_name_the_lane_itself() -> None:
    fault("mask", 0, "shfl.sync.idx.b32 r1, t, 0, 31, 1; ret;")


def test_lanes_with_different_masks() -> None:
    """Each half of the warp may vote on its own; lane 3 may not name fewer lanes than its peers."""
    body = """setp.lt.u32 p0, t, 16; selp.b32 r0, 0xFFFF, 0xFFFF0000, p0;
setp.eq.u32 p1, t, 3; @p1 mov.b32 r0, {};
vote.sync.any.pred p2, p0, r0; ret;"""
    run_body(body.format("0xFFFF"))
    message = fault("mask", 2, body.format("0xFF"))
    assert message.endswith("lanes with masks 0xff and 0xffff meet")


def test_lanes_that_wait_for_each_other_at_two_places() -> None:
    message = fault(
        "mask",
        1,
        """setp.ge.u32 p0, t, 16; @p0 bra OTHER;
shfl.sync.idx.b32 r1, t, 0, 31, -1; ret;
OTHER: shfl.sync.idx.b32 r1, t, 0, 31, -1; ret;""",
    )
    assert "thread 16 waits at PTX line 17" in message


def test_a_barrier_that_some_threads_pass_by() -> None:
    body = """setp.ge.u32 p0, t, {}; @p0 bra END;
bar.sync 0;
END: ret;"""
    run_body(body.format(64), threads=64)
    message = fault("barrier", 1, body.format(32), threads=64)
    assert "thread 32 left the kernel" in message
    fault("barrier", 1, body.format(63), threads=64)


def test_two_barriers_in_two_branches() -> None:
    fault(
        "barrier",
        1,
        """setp.ge.u32 p0, t, 32; @p0 bra OTHER;
bar.sync 0; ret;
OTHER: bar.sync 0; ret;""",
        threads=64,
    )


def test_a_barrier_under_a_predicate() -> None:
    fault("barrier", 1, "setp.lt.u32 p0, t, 32;\n@p0 bar.sync 0; ret;", threads=64)


# What else goes wrong


def test_a_loop_without_end() -> None:
    fault("endless", 0, "LOOP: add.u32 t, t, 1; bra.uni LOOP;")


def test_division_by_zero() -> None:
    fault("division", 0, "div.u32 r0, 7, t; ret;")


def test_a_trap() -> None:
    fault("trap", 0, "trap;")


@pytest.mark.parametrize(
    "instruction",
    [
        "frobnicate.b32 r0, r1;",
        "add.rn.u32 r0, r1, r2;",
        "add.ftz.f64 w0, w1, w2;",
        "mul.u32 r0, r1, r2;",
        "fma.rn.f64 w0, w1, w2, w3;",
        "ex2.f32 r0, r1;",
        "atom.global.add.u32 r0, [out], r1;",
        "bar.sync 1;",
        "bar.sync 0, 64;",
        "bar.arrive 0;",
        "shfl.down.b32 r0, r1, 1, 31;",
        "setp.foo.u32 p0, r0, r1;",
        "setp.ltu.u32 p0, r0, r1;",
        "cvt.s32.f32 r0, r1;",
        "ld.global.v3.u32 {r0, r1, r2}, [out];",
        "ld.global.v2.u32 r0, [out];",
        "ld.global.u32 w0, out;",
        "ld.surface.u32 r0, [out];",
        "st.const.u32 [out], r0;",
        "mov.u32 r0, %clock;",
        "mov.u32 r0, nothing;",
        "add.u64 r0, w0, w1;",
        "add.u64 w0, r0, w1;",
        "add.u32 p0, r0, r1;",
        "selp.u32 r0, r1, r2, r3;",
        "add.u32 5, r0, r1;",
        "add.u32 r0, r1;",
        "add.u32 r0, r1, r2, r3;",
        "add.f64 w0, w1, 0f3F800000;",
        "call.uni f;",
    ],
)
def test_what_is_not_known_is_refused(instruction: str) -> None:
    message = fault("unsupported", 1, f"mov.b32 r0, 0;\n{instruction} ret;")
    assert instruction.split()[0] in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (".entry k() { mov.b32 r0 }", 1),
        ("\n.entry k() {\n ret;", 3),
        (".entry k(.param .u64", 1),
        (".entry k() { ` }", 1),
        (".entry k() { .reg .b32 a;\n.shared x; }", 2),
        (".entry k() { .reg .b32 a<b>; }", 1),
    ],
)
def test_text_that_is_not_ptx(text: str, line: int) -> None:
    with pytest.raises(PtxError) as caught:
        parse(text)
    assert (caught.value.kind, caught.value.line) == ("parse", line)


@pytest.mark.parametrize(
    "text", [".func f() { ret; }", ".entry k() .foo { ret; }", ".reg .b128 x;", ".tex .u32 x;"]
)
def test_directives_that_are_not_known(text: str) -> None:
    with pytest.raises(PtxError, match="unsupported"):
        Interpreter(text)


def test_a_branch_to_nowhere() -> None:
    fault("parse", 0, "bra NOWHERE;")


@pytest.mark.parametrize(
    ("arguments", "grid", "block"),
    [
        ([1], 1, 1),
        ([1, np.float64(1.0)], 1, 1),
        ([1, 1.0], 1, 1),
        ([np.int32(1), np.float32(1.0)], 1, 1),
        ([np.float64(1.0), np.float32(1.0)], 1, 1),
        ([1, np.float32(1.0)], 0, 1),
        ([1, np.float32(1.0)], 1, 65),
    ],
)
def test_arguments_that_do_not_fit(arguments: list[Any], grid: int, block: int) -> None:
    code = Interpreter(".entry k(.param .u64 a, .param .f32 b) .maxntid 64, 1, 1 { ret; }")
    with pytest.raises(PtxError, match="arguments"):
        code.launch("k", grid, block, arguments, Memory())
    code.launch("k", 1, 64, [None, np.float32(1.0)], Memory())


def test_a_kernel_that_is_not_there() -> None:
    code = Interpreter(".entry first() { ret; } .entry second() { ret; }")
    with pytest.raises(PtxError, match="there is no kernel third, only first, second"):
        code.launch("third", 1, 1, [], Memory())
