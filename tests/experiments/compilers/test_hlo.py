import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from experiments.compilers import hlo
from experiments.compilers.epochs import roofline_seconds
from experiments.compilers.hlo_text import ON_CHIP, Buffer
from experiments.compilers.targets import TARGETS

TIME, BATCH, WIDTH = 5, 4, 16

# A loop within a loop as compilers for accelerators emit them: tuples with layouts and memory
# spaces, comments, nested fusions, an update in place, names for buffers, copies ahead of time.
TEXT = """HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused_product (p.0: bf16[4,16], p.1: bf16[16,64]) -> f32[4,64] {
  %p.0 = bf16[4,16]{1,0} parameter(0)
  %p.1 = bf16[16,64]{1,0} parameter(1)
  ROOT %convolution.1 = f32[4,64]{1,0:T(8,128)S(1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%fused_store (p.2: f32[5,4,64], p.3: f32[4,64], p.4: s32[]) -> (f32[5,4,64], bf16[4,16]) {
  %p.2 = f32[5,4,64]{2,1,0:T(8,128)} parameter(0)
  %p.3 = f32[4,64]{1,0} parameter(1)
  %p.4 = s32[]{:T(128)} parameter(2)
  %bitcast.1 = f32[1,4,64]{2,1,0} bitcast(%p.3)
  %zero = s32[] constant(0)
  %store = f32[5,4,64]{2,1,0} dynamic-update-slice(%p.2, %bitcast.1, %p.4, %zero, /*index=4*/%zero)
  %narrow = f32[4,16]{1,0} slice(%p.3), slice={[0:4], [0:16]}
  %rounded = bf16[4,16]{1,0} convert(%narrow)
  ROOT %both = (f32[5,4,64]{2,1,0}, bf16[4,16]{1,0}) tuple(%store, %rounded)
}

%inner_body (state: (s32[], bf16[4,16], f32[5,4,64], bf16[16,64])) -> (s32[], bf16[4,16]) {
  %state = (s32[]{:T(128)}, bf16[4,16]{1,0}, f32[5,4,64]{2,1,0}, bf16[16,64]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %h = bf16[4,16]{1,0} get-tuple-element(%state), index=1
  %saved = f32[5,4,64]{2,1,0} get-tuple-element(%state), index=2
  %w = bf16[16,64]{1,0} get-tuple-element(%state), index=3
  %one = s32[] constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %renamed = bf16[16,64]{1,0} bitcast(%w)
  %product = f32[4,64]{1,0:T(8,128)S(1)} fusion(%h, %renamed), kind=kOutput, calls=%fused_product
  %storing = (f32[5,4,64]{2,1,0}, bf16[4,16]{1,0}) fusion(%saved, %product, %i), calls=%fused_store
  %stored = f32[5,4,64]{2,1,0} get-tuple-element(%storing), index=0
  %h.next = bf16[4,16]{1,0} get-tuple-element(%storing), index=1
  ROOT %out = (s32[], bf16[4,16], f32[5,4,64], bf16[16,64]) tuple(%next, %h.next, %stored, /*3*/%w)
}

%inner_condition (state.1: (s32[], bf16[4,16])) -> pred[] {
  %state.1 = (s32[], bf16[4,16]{1,0}, f32[5,4,64]{2,1,0}, bf16[16,64]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(35)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

%outer_body (arg: (s32[], bf16[4,16])) -> (s32[], bf16[4,16]) {
  %arg = (s32[], bf16[4,16]{1,0}, f32[5,4,64]{2,1,0}, bf16[16,64]{1,0}) parameter(0)
  %ahead = (bf16[16,64]{1,0:S(1)}, bf16[16,64]{1,0}, u32[]) copy-start(%arg)
  %ahead.done = bf16[16,64]{1,0:S(1)} copy-done(%ahead)
  %room = bf16[16,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %while.1 = (s32[]) while(%arg), condition=%inner_condition, body=%inner_body, NAME
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %told = f32[8]{0} custom-call(%x), custom_call_target="xla_ffi_python_cpu_callback"
  %kept = f32[8]{0:S(5)} copy(%x)
  %while.2 = (s32[], bf16[4,16]{1,0}) while(%x), condition=%unknown, body=%outer_body, COUNT
  ROOT %copy.1 = f32[8]{0} copy(%x)
}
"""
TEXT = TEXT.replace("NAME", 'metadata={op_name="jit(f)/transpose(jvp())/while" stack_frame_id=1}')
TEXT = TEXT.replace("COUNT", 'backend_config={"known_trip_count":{"n":"1327"}}')


@pytest.fixture(scope="module")
def program():
    return hlo.parse(TEXT)


@pytest.fixture(scope="module")
def scan():
    """A real program: a scan over time in a scan, compiled for the machine at hand."""

    def run(w, xs):
        def step(h, x):
            h = jnp.tanh(h @ w + x)
            return h, h

        def window(h, _):
            return jax.lax.scan(step, h, xs)

        return jax.lax.scan(window, jnp.zeros((BATCH, WIDTH)), None, length=3)

    shapes = jnp.zeros((WIDTH, WIDTH)), jnp.zeros((TIME, BATCH, WIDTH))
    return hlo.parse(jax.jit(run).lower(*shapes).compile().as_text())


def inner(program):
    """The inner loop, its body, and its kernels by name."""
    (loop,) = (loop for loop in program.loops() if loop.outer)
    kernels = program.kernels(loop.body)
    return loop, program.computations[loop.body], {kernel.name: kernel for kernel in kernels}


def test_loops_tell_their_trip_counts_nesting_and_source(program):
    outer, nested = program.loops()
    assert (outer.body, outer.trip_count, outer.outer) == ("outer_body", 1327, ())
    assert (nested.body, nested.trip_count, nested.outer) == ("inner_body", 35, (outer,))
    assert "transpose(" in nested.source


def test_kernels_are_what_the_device_starts(program):
    _, _, kernels = inner(program)
    assert list(kernels) == ["next", "product", "storing"]
    assert [kernel.name for kernel in program.kernels("outer_body")] == ["ahead"]


def test_arithmetic_on_single_numbers_is_left_out_on_request(program):
    names = [kernel.name for kernel in program.kernels("inner_body", scalars=False)]
    assert names == ["product", "storing"]


def test_buffers_have_type_shape_space_and_size(program):
    _, body, kernels = inner(program)
    assert kernels["product"].results == (Buffer("f32", (4, 64), ON_CHIP),)
    assert [buffer.nbytes for buffer in kernels["storing"].results] == [5 * 4 * 64 * 4, 4 * 16 * 2]
    assert body["i"].results == (Buffer("s32", ()),)
    assert Buffer("pred", (3, 2)).nbytes == 6


def test_flops_are_counted_by_the_type_that_is_multiplied(program):
    _, body, kernels = inner(program)
    assert program.flops(kernels["product"], body) == {"bf16": 2 * 4 * 16 * 64}
    assert not program.flops(kernels["storing"], body)


def convolved(left, right, result, window, labels):
    """The operations counted for a convolution of these shapes."""
    text = f"""
%body (a: f32[2]) -> f32[2] {{
  %a = f32[{left}] parameter(0)
  %b = f32[{right}] parameter(1)
  ROOT %c = f32[{result}] convolution(%a, %b), window={{{window}}}, dim_labels={labels}
}}
"""
    program = hlo.parse(text)
    body = program.computations["body"]
    return program.flops(body["c"], body)["f32"]


def test_flops_of_a_batch_of_products_are_those_of_each():
    # Ten products of [20, 30] by [30, 60], as the compiler for v5e writes them.
    window = "size=10 stride=9 lhs_dilate=10"
    flops = convolved("10,20,30", "10,30,60", "10,20,60", window, "0bf_0io->0bf")
    assert flops == 2 * 10 * 20 * 30 * 60


def test_flops_of_a_convolution_leave_padding_and_holes_out():
    # Outputs at 0 to 4 see inputs at -1 to 1, ..., 3 to 5, of which 0 to 4 exist.
    assert convolved("5,7", "3,7,2", "5,2", "size=3 pad=1_1", "0f_0io->0f") == 2 * 13 * 7 * 2
    spread = "size=3 pad=1_1 lhs_dilate=2"  # inputs at 0, 2, 4
    assert convolved("3,7", "3,7,2", "5,2", spread, "0f_0io->0f") == 2 * 7 * 7 * 2
    apart = "size=2x1 rhs_dilate=4x1"  # outputs 0 and 1 see inputs 0 and 4, 1 and 5
    assert convolved("6,3,7", "2,1,7,2", "2,3,2", apart, "01f_01io->01f") == 2 * 4 * 3 * 7 * 2


def test_collectives_are_found_wherever_they_are_with_their_bytes():
    text = """
%body (a: f32[2,3]) -> f32[2,3] {
  %a = f32[2,3]{1,0} parameter(0)
  %one = f32[2,3]{1,0} all-reduce(%a), to_apply=%sum
  %begun = ((f32[2,3]{1,0}), f32[2,3]{1,0}, bf16[4]{0}) all-reduce-start(%a, %a), to_apply=%sum
  %all-reduce = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce-done(%begun)
  ROOT %moved = f32[2,3]{1,0} collective-permute(%one), source_target_pairs={{0,1}}
}
"""
    assert hlo.parse(text).collectives() == {"all-reduce": 24 + 24 + 8, "collective-permute": 24}
    assert hlo.parse(TEXT).collectives() == {}


def test_update_in_place_moves_the_update_alone(program):
    _, body, kernels = inner(program)
    assert program.writes(kernels["storing"], body) == [4 * 64 * 4, 4 * 16 * 2]
    reads = program.reads(kernels["storing"], body)
    assert reads["saved"] == 0
    assert reads["product"] == 4 * 64 * 4


def test_reads_name_the_buffer_behind_a_bitcast(program):
    _, body, kernels = inner(program)
    assert program.reads(kernels["product"], body) == {"h": 4 * 16 * 2, "w": 16 * 64 * 2}


def test_what_a_fusion_renames_for_the_one_around_it_is_read():
    text = """
%rename (p.0: bf16[2,16,64]) -> bf16[2,16,64] {
  %p.0 = bf16[2,16,64]{2,1,0} parameter(0)
  ROOT %named = bf16[2,16,64]{2,1,0} bitcast(%p.0)
}

%product (p.1: bf16[2,4,16], p.2: bf16[2,16,64]) -> f32[2,4,64] {
  %p.1 = bf16[2,4,16]{2,1,0} parameter(0)
  %p.2 = bf16[2,16,64]{2,1,0} parameter(1)
  %weights = bf16[2,16,64]{2,1,0} fusion(%p.2), kind=kLoop, calls=%rename
  ROOT %dot = f32[2,4,64]{2,1,0} dot(%p.1, %weights), rhs_contracting_dims={1}
}

ENTRY %main (x: bf16[2,4,16], w: bf16[2,16,64]) -> f32[2,4,64] {
  %x = bf16[2,4,16]{2,1,0} parameter(0)
  %w = bf16[2,16,64]{2,1,0} parameter(1)
  ROOT %y = f32[2,4,64]{2,1,0} fusion(%x, %w), kind=kOutput, calls=%product
}
"""
    program = hlo.parse(text)
    body = program.computations["main"]
    assert program.reads(body["y"], body) == {"x": 2 * 4 * 16 * 2, "w": 2 * 16 * 64 * 2}


def test_of_a_pass_s_block_of_steps_the_steps_are_read():
    text = """
%step (p.0: f32[35,4,64], p.1: s32[]) -> f32[1,4,64] {
  %p.0 = f32[35,4,64]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %block = f32[7,4,64]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), dynamic_slice_sizes={7,4,64}
  %third = f32[1,4,64]{2,1,0} slice(%block), slice={[3:4], [0:4], [0:64]}
  %fourth = f32[1,4,64]{2,1,0} slice(%block), slice={[4:5], [0:4], [0:64]}
  ROOT %sum = f32[1,4,64]{2,1,0} add(%third, %fourth)
}

ENTRY %main (x: f32[35,4,64], i: s32[]) -> f32[1,4,64] {
  %x = f32[35,4,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %y = f32[1,4,64]{2,1,0} fusion(%x, %i), kind=kLoop, calls=%step
}
"""
    program = hlo.parse(text)
    body = program.computations["main"]
    assert program.reads(body["y"], body)["x"] == 2 * 4 * 64 * 4


def test_unchanged_is_what_a_pass_hands_on_as_it_is(program):
    assert program.unchanged(inner(program)[0]) == {"w"}


def test_callbacks_and_host_memory_are_found(program):
    assert program.moves_to_or_from_host(program.entry) == ["told", "kept"]
    assert program.moves_to_or_from_host("inner_body") == []


def test_scan_compiled_here_is_read_to_the_last_operation(scan):
    loop, body, kernels = inner(scan)
    assert (loop.trip_count, loop.outer[0].trip_count) == (TIME, 3)
    flops = sum((scan.flops(kernel, body) for kernel in kernels.values()), Counter())
    assert flops == {"f32": 2 * BATCH * WIDTH * WIDTH}
    step = BATCH * WIDTH * 4
    assert max(max(scan.writes(kernel, body)) for kernel in kernels.values()) == step
    assert not scan.moves_to_or_from_host(loop.body)


def test_slices_of_a_sequence_are_read_a_step_at_a_time(scan):
    _, body, kernels = inner(scan)
    sequence = Buffer("f32", (TIME, BATCH, WIDTH))
    reads = [
        size
        for kernel in kernels.values()
        for name, size in scan.reads(kernel, body).items()
        if body[name].results == (sequence,)
    ]
    assert sorted(reads) == [0, BATCH * WIDTH * 4]  # stored into, and read from


def test_roofline_adds_up_kernels_times_passes(program):
    target = dataclasses.replace(
        TARGETS["h200"],
        peak_flops={"bfloat16": 1e6, "float32": 1.0},
        memory_bandwidth=1e3,
        launch_seconds=1.0,
        on_chip_bytes=2048,
    )
    read = 4 * 16 * 2 + 16 * 64 * 2 / 35  # W_h once in 35 passes
    product = max(2 * 4 * 16 * 64 / 1e6, read / 1e3)
    step = 3 + 0.012 + product + (4 * 64 * 4 + 4 * 16 * 2 + 4) / 1e3
    outer, entry = 1 + (7300 + 4100) / 1e3, 3 + 3 * 64 / 1e3
    assert roofline_seconds(program, target) == pytest.approx(entry + 1327 * (outer + 35 * step))
