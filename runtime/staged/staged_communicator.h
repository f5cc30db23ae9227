// Communicators between ranks that cannot read each other's memory, from any Exchange: the whole contract of
// runtime/communicator.h, with the bits of LocalCommunicator.
//
//   auto world = make_staged_communicator(std::move(exchange));     // on each rank of the exchange
//
// How:
//   1. Every collective begins with the ranks' calls, sent by each rank to each other one, and compared: the late rank is
//      known by name, and calls that differ are found before a byte of data moves. That is one small message per pair of
//      ranks, and a barrier is nothing else.
//   2. reduce_scatter is an all-to-all of contributions in the wire dtype, in blocks that fit the call's staging, each
//      summed by the rank whose piece it is, in tree order, with the kernels of all communicators. So the bits are those
//      of any other transport, whatever the size of the blocks.
//   3. all_gather is an all-to-all of pieces into their places, in blocks of kLongestMessage and of 64 MiB in all.
//   4. Groups of a family share the one Exchange: a rank makes one call at a time, and two ranks that share groups call
//      them in the same order. Who does not is told so, by name.
//   5. A rank that fails gives up with the name of the rank that is to blame, and all tell the same story.
// A rank that destroys a part (split) but keeps the world is missed by those who wait in the part only at the deadline.
//
// Memory of the device must be host memory. Arenas are the ranks' own. Nothing moves between calls: no thread works in the
// background, because streams of the CPU execute in line, so there would be nothing for it to overlap with.
#pragma once

#include <memory>

#include "runtime/communicator.h"
#include "runtime/staged/exchange.h"

namespace shardplan {

// Ranks, size and deadline are the exchange's, which is destroyed with the last communicator of the family.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Exchange> exchange);

}  // namespace shardplan
