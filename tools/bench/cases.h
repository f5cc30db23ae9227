// The cases of shardplan-bench, in groups. Each registers with Google Benchmark; names, arguments and counters stay.
#pragma once

namespace shardplan::bench {

// adamw_fp32, adamw_bf16_mixed, adamw_fp16_mixed, adamw_bf16_mixed_four_pass, NAME/elements:N/threads:T. Counters:
// elements_per_second; ratio_to_limit, against a stream of the same reads and writes by as many threads. four_pass is
// what the fused update replaces: gradients to fp32, unscale, update, parameters to bf16, each a pass over memory.
//
// adamw_congruent/elements:N/threads:T, fp32, over an arena with the offsets of a step plan; N = 2^26 puts arrays a
// power of two apart. Counter ratio_to_uncongruent, against the same update over arrays at unrelated distances.
void register_adamw();

// grad_norm (fp32) and grad_norm_bf16, NAME/elements:N/threads:T. Counters: elements_per_second; ratio_to_read_limit,
// against as many threads that only read.
void register_norm();

// gpu_adamw_fp32, gpu_adamw_bf16_mixed, gpu_cast_to_bf16, gpu_grad_norm_bf16, NAME/elements:N, on the first GPU; where there
// is none, a line on stderr says why, and no case is there. Counter ratio_to_copy, against a copy inside of the GPU that
// reads and writes as many bytes in all.
void register_gpu();

// offload_step_host and offload_step_file/elements:N: one step() of a rank whose optimizer states (bf16-mixed, 12 bytes per
// parameter) are in host memory, or in a file in the folder for temporary files. Counter ratio_to_limit: against the same
// step() without offload; for the file, against the longer of that and of the same bytes read and written at once, in blocks
// of the same size, past the page cache.
void register_offload();

// checkpoint_save and checkpoint_load/bytes:N: of one rank (fp32), into the folder for temporary files and from there with
// nothing in the page cache. Counters bytes_per_second; ratio_to_limit: against the same bytes written, and synced, or read
// past the page cache in blocks of 8 MiB by one thread; where fio is installed, ratio_to_fio: against what fio --direct=1
// does of that, in turns with it, and the least and the most of the pairs.
void register_checkpoints();

// plan_7b and plan_405b: one make_step_plan, the catalog in memory. fit_space/MODEL: memcalc fit over a space of more than 100,000
// set-ups; counters set_ups and set_ups_per_second.
void register_planner();

}  // namespace shardplan::bench
