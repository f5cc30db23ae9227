#include "shard/kernels/accumulate.h"
#include "shard/kernels/kernels.h"

namespace shardplan {
namespace {

class HostKernels final : public Kernels {
 public:
  bool hold_values() const override { return true; }
  void cast(Stream& stream, const Elements& to, const ConstElements& from) const override {
    stream.launching("cast", touched_by_cast(to, from));
    shardplan::cast(to, from);
  }
  void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const override {
    stream.launching("accumulate", touched_by_accumulate(sum, part));
    accumulate_elements(sum, part);
  }
  void update(Stream& stream, const UpdateOptions& options, const UpdateArrays& arrays) const override {
    stream.launching("update", touched_by_update(arrays));
    optimizer_update(options, arrays);
  }
  double sum_of_squares(Stream& stream, const ConstElements& values) const override {
    stream.launching("norm", touched_by_norm(values));
    stream.synchronize();
    return shardplan::sum_of_squares(values).sum;
  }
};

// The same launches, and nothing else.
class BookingKernels final : public Kernels {
 public:
  bool hold_values() const override { return false; }
  void cast(Stream& stream, const Elements& to, const ConstElements& from) const override {
    stream.launching("cast", touched_by_cast(to, from));
  }
  void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const override {
    stream.launching("accumulate", touched_by_accumulate(sum, part));
  }
  void update(Stream& stream, const UpdateOptions&, const UpdateArrays& arrays) const override {
    stream.launching("update", touched_by_update(arrays));
  }
  double sum_of_squares(Stream& stream, const ConstElements& values) const override {
    stream.launching("norm", touched_by_norm(values));
    stream.synchronize();
    return 0;
  }
};

}  // namespace

const Kernels& host_kernels() {
  static const HostKernels kernels;
  return kernels;
}

const Kernels& booking_kernels() {
  static const BookingKernels kernels;
  return kernels;
}

}  // namespace shardplan
