// A communicator over NCCL: one rank, one GPU, any number of processes and nodes. Included inside of the CUDA module only.
//
// Contract 1 (communicator.h) holds in canonical mode: contributions travel by grouped sends and receives into the
// call's staging, and a kernel of ours sums them in tree order. In fast mode NCCL sums, in an order and, for 16-bit wire
// dtypes, with roundings of its own; the scale is applied afterwards, in fp32.
//
// Collectives are put on the stream and have been done when the stream has come to them: a failure of one is met by a
// later call of the family. Calls are compared (contract 3) at the next exchange of records; until then a call that does
// not match its peers' ends at the deadline. NCCL seldom says which peer failed: the error's rank is then -1. What is
// behind deadlines is in nccl_family.h.
//
// Pieces: where a rank's own piece is the rank-th of `size` equal ones, so must be the others'. Other tilings cost an
// exchange of records in each call.
#pragma once

#include <memory>
#include <vector>

#include "runtime/communicator.h"
#include "runtime/cuda/nccl_family.h"
#include "runtime/nccl_options.h"

namespace shardplan::cuda {

// Collective over options.size ranks: the communicator at the top of a family, of the GPU `device`.
std::unique_ptr<Communicator> make_nccl_communicator(int device, const NcclOptions& options);

}  // namespace shardplan::cuda
