// all_reduce, reduce_scatter and all_gather of ranks on one machine, over real arenas.
#pragma once

namespace shardplan::bench {

// Cases NAME/bytes:B/ranks:N, fp32, B bytes of the full vector. Counters: bytes_per_second, of the full
// vector; ratio_to_limit, the median over pairs of runs, against two threads that do the same loads and
// stores over the same buffers in a plain loop, without ranks. Ranks are threads; in the cases NAME_shared they are
// processes over shared memory, and the limit has buffers of its own.
void register_collectives();

}  // namespace shardplan::bench
