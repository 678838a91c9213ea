"""Texts as XLA writes them about a program for a GPU, made small."""

# ruff: noqa: E501

PROGRAM = """\
HloModule jit_tick, is_scheduled=true, input_output_alias={ {0}: (2, {}, may-alias), {1}: (3, {}, may-alias) }, \
entry_computation_layout={(bf16[4,64,32]{2,1,0}, bf16[4,32]{1,0}, bf16[4,2,9,16]{3,2,1,0}, s32[7]{0})->(bf16[4])}

%dynamic-slice-fusion (p0: bf16[4,64,32], p1: s32[], p2: bf16[8,32]) -> (bf16[8,64], s8[1024]) {
  %p0 = bf16[4,64,32]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = bf16[1,64,32]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,64,32}
  %bitcast.1 = bf16[64,32]{1,0} bitcast(%dynamic-slice.1)
  %p2 = bf16[8,32]{1,0} parameter(2)
  ROOT %custom-call.8 = (bf16[8,64]{1,0}, s8[1024]{0}) custom-call(%p2, %bitcast.1), custom_call_target="__cublas$lt$matmul"
}

%fused_dynamic_slice (param_0: bf16[4,32], param_1: s32[]) -> bf16[1,32] {
  %param_0 = bf16[4,32]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %none = s32[] constant(0)
  %where = s32[] add(%param_1, %none)
  ROOT %dynamic-slice.2 = bf16[1,32]{1,0} dynamic-slice(%param_0, %where, %none), dynamic_slice_sizes={1,32}
}

%fused_pad (param_0.1: bf16[7,32]) -> bf16[8,32] {
  %param_0.1 = bf16[7,32]{1,0} parameter(0)
  %nothing = bf16[] constant(0)
  ROOT %pad.1 = bf16[8,32]{1,0} pad(%param_0.1, %nothing), padding=0_1x0_0
}

%fused_norm (param_0.2: bf16[8,32], param_1.2: bf16[1,32]) -> bf16[8,32] {
  %param_0.2 = bf16[8,32]{1,0} parameter(0)
  ROOT %multiply.1 = bf16[8,32]{1,0} multiply(%param_0.2, %param_0.2)
}

%async_computation (param_0.3: bf16[4,32], param_1.3: s32[]) -> bf16[1,32] {
  %param_0.3 = bf16[4,32]{1,0} parameter(0)
  %param_1.3 = s32[] parameter(1)
  ROOT %slice_fusion = bf16[1,32]{1,0} fusion(%param_0.3, %param_1.3), kind=kLoop, calls=%fused_dynamic_slice
}

%body (arg: (s32[], bf16[7,32], bf16[4,2,9,16], bf16[4,64,32], bf16[4,32])) -> (s32[], bf16[7,32], bf16[4,2,9,16], \
bf16[4,64,32], bf16[4,32]) {
  %arg = (s32[], bf16[7,32]{1,0}, bf16[4,2,9,16]{3,2,1,0}, bf16[4,64,32]{2,1,0}, bf16[4,32]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%arg), index=0
  %fusion-start = ((bf16[4,32]{1,0}, s32[]), bf16[1,32]{1,0}, u32[]) async-start(%arg#4, %step), calls=%async_computation
  %fusion-done = bf16[1,32]{1,0} async-done(%fusion-start)
  %pad_fusion = bf16[8,32]{1,0} fusion(%arg#1), kind=kLoop, calls=%fused_pad
  %norm = bf16[8,32]{1,0} fusion(%pad_fusion, %fusion-done), kind=kCustom, calls=%fused_norm
  %product = (bf16[8,64]{1,0}, s8[1024]{0}) fusion(%arg#3, %step, %norm), kind=kCustom, calls=%dynamic-slice-fusion
  %product.remat = (bf16[8,64]{1,0}, s8[1024]{0}) fusion(%arg#3, %step, %norm), kind=kCustom, calls=%dynamic-slice-fusion
  %triton_kernel_call.0 = bf16[4,2,9,16]{3,2,1,0} custom-call(%product#0, %arg#2), custom_call_target="triton_kernel_call"
  %all-reduce-start = bf16[7,32]{1,0} all-reduce-start(%arg#1), channel_id=1, to_apply=%sum
  %all-reduce-done = bf16[7,32]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %out = (s32[], bf16[7,32]{1,0}, bf16[4,2,9,16]{3,2,1,0}) tuple(%step, %all-reduce-done, %triton_kernel_call.0)
}

%condition (arg.1: (s32[], bf16[7,32], bf16[4,2,9,16], bf16[4,64,32], bf16[4,32])) -> pred[] {
  %arg.1 = (s32[], bf16[7,32]{1,0}, bf16[4,2,9,16]{3,2,1,0}, bf16[4,64,32]{2,1,0}, bf16[4,32]{1,0}) parameter(0)
  ROOT %compare.1 = pred[] compare(%arg.1#0, %arg.1#0), direction=LT
}

%yes (branch: bf16[7,32]) -> bf16[7,32] {
  %branch = bf16[7,32]{1,0} parameter(0)
  ROOT %copy.9 = bf16[7,32]{1,0} copy(%branch)
}

%no (branch.1: bf16[7,32]) -> bf16[7,32] {
  ROOT %branch.1 = bf16[7,32]{1,0} parameter(0)
}

ENTRY %main (w: bf16[4,64,32], n: bf16[4,32], pool: bf16[4,2,9,16], plans: s32[7]) -> (bf16[4,2,9,16]) {
  %w = bf16[4,64,32]{2,1,0} parameter(0), metadata={op_name="parameters[\\'layers.mlp.up.kernel\\']"}
  %transposed = bf16[4,64,32]{1,2,0} transpose(%w), dimensions={0,1,2}
  %n = bf16[4,32]{1,0} parameter(1), metadata={op_name="parameters[\\'layers.norm.scale\\']"}
  %pool = bf16[4,2,9,16]{3,2,1,0} parameter(2), metadata={op_name="state.pool"}
  %plans = s32[7]{0} parameter(3), metadata={op_name="plans"}
  %copy.1 = s32[7]{0} copy(%plans)
  %rows = bf16[7,32]{1,0} fusion(%copy.1), kind=kLoop, calls=%fused_norm
  %begin = (s32[], bf16[7,32]{1,0}, bf16[4,2,9,16]{3,2,1,0}, bf16[4,64,32]{2,1,0}, bf16[4,32]{1,0}) \
tuple(%copy.1, %rows, %pool, %transposed, %n)
  %while.40 = (s32[], bf16[7,32]{1,0}, bf16[4,2,9,16]{3,2,1,0}, bf16[4,64,32]{2,1,0}, bf16[4,32]{1,0}) while(%begin), \
condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"},"known_init_step":{"init":"0","step":"1"}}
  %cond.1 = bf16[7,32]{1,0} conditional(%plans, %while.40#1, %while.40#1), true_computation=%yes, false_computation=%no
  %copy.2 = bf16[4,2,9,16]{3,2,1,0} copy(%while.40#2)
  ROOT %end = (bf16[4,2,9,16]{3,2,1,0}) tuple(%copy.2)
}
"""

LAYERS = """\
HloModule jit_tick, is_scheduled=true, entry_computation_layout={(bf16[4,32]{1,0})->(bf16[8,64])}

%fused_norm (param_0.2: bf16[8,32]) -> bf16[8,32] {
  %param_0.2 = bf16[8,32]{1,0} parameter(0)
  ROOT %multiply.9 = bf16[8,32]{1,0} multiply(%param_0.2, %param_0.2)
}

%fused_pad (param_0.1: bf16[7,32]) -> bf16[8,32] {
  %param_0.9 = bf16[7,32]{1,0} parameter(0)
  %nothing = bf16[] constant(0)
  ROOT %pad.9 = bf16[8,32]{1,0} pad(%param_0.9, %nothing), padding=0_1x0_0
}

ENTRY %main (n: bf16[4,32]) -> (bf16[8,64]) {
  %n = bf16[4,32]{1,0} parameter(0), metadata={op_name="parameters[\\'layers.norm.scale\\']"}
  %head = bf16[64,32]{1,0} parameter(1), metadata={op_name="parameters[\\'head\\']"}
  %x = bf16[8,32]{1,0} parameter(2), metadata={op_name="state.register"}
  %u0.0 = bf16[32,32]{1,0} parameter(3), metadata={op_name="parameters[\\'layers.mlp.up.kernel.0\\']"}
  %d0.0 = bf16[32,32]{1,0} parameter(4), metadata={op_name="parameters[\\'layers.mlp.down.kernel.0\\']"}
  %u1.1 = bf16[32,32]{1,0} parameter(5), metadata={op_name="parameters[\\'layers.mlp.up.kernel.1\\']"}
  %d1.1 = bf16[32,32]{1,0} parameter(6), metadata={op_name="parameters[\\'layers.mlp.down.kernel.1\\']"}
  %u2.2 = bf16[32,32]{1,0} parameter(7), metadata={op_name="parameters[\\'layers.mlp.up.kernel.2\\']"}
  %d2.2 = bf16[32,32]{1,0} parameter(8), metadata={op_name="parameters[\\'layers.mlp.down.kernel.2\\']"}
  %copy.7 = bf16[8,32]{1,0} copy(%x)
  %norm.0 = bf16[8,32]{1,0} fusion(%copy.7), kind=kLoop, calls=%fused_norm
  %up.0 = bf16[8,32]{1,0} custom-call(%norm.0, %u0.0), custom_call_target="__cublas$gemm"
  %copy.8 = bf16[8,32]{1,0} copy(%x)
  %flat0.0 = bf16[32,32]{1,0} bitcast(%d0.0)
  %down.0 = bf16[8,32]{1,0} custom-call(%up.0, %flat0.0), custom_call_target="__cublas$gemm"
  %norm.1 = bf16[8,32]{1,0} fusion(%down.0), kind=kLoop, calls=%fused_norm
  %up.1 = bf16[8,32]{1,0} custom-call(%norm.1, %u1.1), custom_call_target="__cublas$gemm"
  %triton_kernel_call.1 = bf16[7,32]{1,0} custom-call(%up.1), custom_call_target="triton_kernel_call_ffi", api_version=API_VERSION_TYPED_FFI
  %pad_fusion = bf16[8,32]{1,0} fusion(%triton_kernel_call.1), kind=kLoop, calls=%fused_pad
  %flat1.1 = bf16[32,32]{1,0} bitcast(%d1.1)
  %down.1 = bf16[8,32]{1,0} custom-call(%pad_fusion, %flat1.1), custom_call_target="__cublas$gemm"
  %norm.2 = bf16[8,32]{1,0} fusion(%down.1), kind=kLoop, calls=%fused_norm
  %up.2 = bf16[8,32]{1,0} custom-call(%norm.2, %u2.2), custom_call_target="__cublas$gemm"
  %flat2.2 = bf16[32,32]{1,0} bitcast(%d2.2)
  %down.2 = bf16[8,32]{1,0} custom-call(%up.2, %flat2.2), custom_call_target="__cublas$gemm"
  ROOT %logits = bf16[8,64]{1,0} custom-call(%down.2, %head), custom_call_target="__cublas$gemm"
}
"""

# sums, each of a shape of its own: beside a product, a copy, another sum, and one that is not asynchronous
BESIDE = """\
HloModule jit_tick, is_scheduled=true, entry_computation_layout={(bf16[8,32]{1,0})->(bf16[1,32])}

%wrapped_sum (a: bf16[4,32]) -> bf16[4,32] {
  %a = bf16[4,32]{1,0} parameter(0)
  ROOT %psum.1 = bf16[4,32]{1,0} all-reduce(%a), to_apply=%sum
}

%wrapped_copy (b: bf16[8,32]) -> bf16[8,32] {
  %b = bf16[8,32]{1,0} parameter(0)
  ROOT %copy.1 = bf16[8,32]{1,0} copy(%b)
}

ENTRY %main (x: bf16[8,32]) -> (bf16[1,32]) {
  %x = bf16[8,32]{1,0} parameter(0)
  %product.1 = bf16[4,32]{1,0} custom-call(%x, %x), custom_call_target="__cublas$gemm"
  %sum-start.1 = ((bf16[4,32]{1,0}), bf16[4,32]{1,0}) async-start(%product.1), calls=%wrapped_sum
  %copy-start.1 = ((bf16[8,32]{1,0}), bf16[8,32]{1,0}) async-start(%x), calls=%wrapped_copy
  %flat = bf16[256]{0} bitcast(%x)
  %product.2 = bf16[3,32]{1,0} custom-call(%flat, %x), custom_call_target="__cublas$gemm"
  %sum-done.1 = bf16[4,32]{1,0} async-done(%sum-start.1)
  %all-reduce-start.2 = bf16[3,32]{1,0} all-reduce-start(%product.2), to_apply=%sum
  %copy-done.1 = bf16[8,32]{1,0} async-done(%copy-start.1)
  %copy.2 = bf16[8,32]{1,0} copy(%copy-done.1)
  %all-reduce-done.2 = bf16[3,32]{1,0} all-reduce-done(%all-reduce-start.2)
  %all-reduce-start.3 = bf16[2,32]{1,0} all-reduce-start(%copy.2), to_apply=%sum
  %all-reduce.4 = bf16[1,32]{1,0} all-reduce(%copy.2), to_apply=%sum
  %all-reduce-done.3 = bf16[2,32]{1,0} all-reduce-done(%all-reduce-start.3)
  ROOT %last = bf16[1,32]{1,0} custom-call(%all-reduce.4, %sum-done.1), custom_call_target="__cublas$gemm"
}
"""

THUNKS = """\
000: kCommandBuffer [source       | next=011 (1)]\x20
    001: kCopy         [source       | sink        ] kCopy
    002: kCustomKernel [source       | sink        ] loop_gather_fusion_1 grid: [8, 1, 1] threads: [128, 1, 1]
011: kWhile         [prev=000 (1) | next=000 (1)]   \x20
condition:
    012: kCustomKernel [source | sink] loop_compare_fusion grid: [1, 1, 1] threads: [1, 1, 1]
  body:
    000: kCommandBuffer [source | sink]\x20
        013: kAsyncStart         [source       | next=023 (4) ] stream=computation_stream[2], async_id=13
            015: kDynamicSliceFusion [source | sink] params=1, results=1
                014: kCopy [source | sink] kCopy
        022: kAsyncDone          [source       | sink         ] async_id=13
        023: kCustomKernel       [prev=013 (4) | next=024 (1) ] fusion_376 grid: [64, 1, 1] threads: [128, 1, 1]
    024: kCustomCall    [prev=000 (1) | sink] kCustomCall
000: kCommandBuffer [prev=011 (1) | sink        ]\x20
    053: kConditional    [prev=050 (1) | next=055 (1)]      \x20
      false_branch:
        051: kCustomKernel [source | sink] loop_subtract_fusion grid: [16, 1, 1] threads: [128, 1, 1]
      true_branch:
        No thunks.
125: kCopy           [source       | sink        ] kCopy
"""

METADATA = """\
thunk_metadata {
  thunk_info {
    profile_annotation: "command_buffer_1"
  }
  thunk_kind: "kCommandBuffer"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "while.40"
    thunk_id: 11
  }
  thunk_kind: "kWhile"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "triton_kernel_call.0"
    thunk_id: 24
  }
  thunk_kind: "kCustomCall"
}
thunk_metadata {
  thunk_info {
    profile_annotation: "copy.84"
    thunk_id: 125
  }
  thunk_kind: "kCopy"
}
"""

LOG = """\
I1129 21:43:45.625692 7418 command_buffer_conversion_pass.cc:652] Module jit_tick CommandBufferConfig: enabled
I1129 21:43:45.625750 7418 command_buffer_conversion_pass.cc:269] WhileThunk is not convertible to command buffers
I1129 21:43:45.625751 7418 dump.cc:485] HloModule dump enabled
I1129 21:43:45.625752 7418 command_buffer_conversion_pass.cc:269] WhileThunk is not convertible to command buffers
I1129 21:43:45.626071 7418 command_buffer_conversion_pass.cc:564] Creating command buffer thunk with the following: a
I1129 21:43:45.626071 7418 command_buffer_conversion_pass.cc:555] Thunk kind kCopy is not lowered to command buffer
"""
