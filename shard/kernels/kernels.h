// What the optimizer asks of a device, one call for each kernel: the CPU's loops, a simulated device's prices, an
// accelerator's launches. ZeroOptimizer touches no byte but through these, the device's streams and the communicator.
//
// Work is put on the stream in order; on the CPU it has finished when the call returns. Arrays are as in arrays.h,
// accumulate.h and optimizer_update.h, at addresses of the stream's device. Stateless: one object may serve all ranks.
#pragma once

#include "runtime/device.h"
#include "shard/kernels/arrays.h"
#include "shard/kernels/optimizer_update.h"

namespace shardplan {

class Kernels {
 public:
  virtual ~Kernels() = default;
  // False where bytes are booked and not held: then nothing is asked for initial values.
  virtual bool hold_values() const = 0;
  virtual void cast(Stream& stream, const Elements& to, const ConstElements& from) const = 0;
  virtual void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const = 0;
  virtual void update(Stream& stream, const UpdateOptions& options, const UpdateArrays& arrays) const = 0;
  // The rank waits for the result.
  virtual double sum_of_squares(Stream& stream, const ConstElements& values) const = 0;
};

// The loops of this folder, at the best level that the processor has.
const Kernels& host_kernels();
// For virtual devices: launches with the same names and bytes, and touches nothing.
const Kernels& booking_kernels();

// What a kernel reads and writes, each array once for each of both.
Bytes touched_by_cast(const Elements& to, const ConstElements& from);
Bytes touched_by_accumulate(const Elements& sum, const ConstElements& part);
Bytes touched_by_update(const UpdateArrays& arrays);
Bytes touched_by_norm(const ConstElements& values);

}  // namespace shardplan
