import jax
import jax.numpy as jnp
import pytest

from experiments import hlo

TIME, BATCH, WIDTH = 5, 4, 16

# A loop within a loop as compilers for accelerators write them: tuples with layouts and memory
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
    """A real one: a scan over time in a scan, compiled for the machine at hand."""

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
    """The body of the loop in the loop, and its kernels by name."""
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
    assert kernels["product"].results == (hlo.Buffer("f32", (4, 64), hlo.ON_CHIP),)
    assert [buffer.nbytes for buffer in kernels["storing"].results] == [5 * 4 * 64 * 4, 4 * 16 * 2]
    assert body["i"].results == (hlo.Buffer("s32", ()),)
    assert hlo.Buffer("pred", (3, 2)).nbytes == 6


def test_flops_are_counted_by_the_type_that_is_multiplied(program):
    _, body, kernels = inner(program)
    assert program.flops(kernels["product"], body) == {"bf16": 2 * 4 * 16 * 64}
    assert not program.flops(kernels["storing"], body)


def test_update_in_place_moves_the_update_alone(program):
    _, body, kernels = inner(program)
    assert program.writes(kernels["storing"], body) == [4 * 64 * 4, 4 * 16 * 2]
    reads = program.reads(kernels["storing"], body)
    assert reads["saved"] == 0
    assert reads["product"] == 4 * 64 * 4


def test_reads_name_the_buffer_behind_a_bitcast(program):
    _, body, kernels = inner(program)
    assert program.reads(kernels["product"], body) == {"h": 4 * 16 * 2, "w": 16 * 64 * 2}


def test_unchanged_is_what_a_pass_hands_on_as_it_is(program):
    assert program.unchanged(inner(program)[0]) == {"w"}


def test_callbacks_and_host_memory_are_found(program):
    assert program.moves_to_or_from_host(program.entry) == ["told", "kept"]
    assert program.moves_to_or_from_host("inner_body") == []


def test_scan_compiled_here_is_read_to_the_last_operation(scan):
    loop, body, kernels = inner(scan)
    assert (loop.trip_count, loop.outer[0].trip_count) == (TIME, 3)
    flops = sum((scan.flops(kernel, body) for kernel in kernels.values()), hlo.Counter())
    assert flops == {"f32": 2 * BATCH * WIDTH * WIDTH}
    step = BATCH * WIDTH * 4
    assert max(max(scan.writes(kernel, body)) for kernel in kernels.values()) == step
    assert not scan.moves_to_or_from_host(loop.body)


def test_slices_of_a_sequence_are_read_a_step_at_a_time(scan):
    _, body, kernels = inner(scan)
    sequence = hlo.Buffer("f32", (TIME, BATCH, WIDTH))
    reads = [
        size
        for kernel in kernels.values()
        for name, size in scan.reads(kernel, body).items()
        if body[name].results == (sequence,)
    ]
    assert sorted(reads) == [0, BATCH * WIDTH * 4]  # stored into, and read from
