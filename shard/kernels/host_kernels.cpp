#include "shard/kernels/accumulate.h"
#include "shard/kernels/kernels.h"

namespace shardplan {
namespace {

class HostKernels final : public Kernels {
 public:
  bool hold_values() const override { return true; }
  void cast(Stream& stream, const Elements& to, const ConstElements& from) const override {
    stream.launching("cast");
    shardplan::cast(to, from);
  }
  void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const override {
    stream.launching("accumulate");
    accumulate_elements(sum, part);
  }
  void update(Stream& stream, const UpdateOptions& options, const UpdateArrays& arrays) const override {
    stream.launching("update");
    optimizer_update(options, arrays);
  }
  double sum_of_squares(Stream& stream, const ConstElements& values) const override {
    stream.launching("norm");
    return shardplan::sum_of_squares(values).sum;
  }
};

}  // namespace

const Kernels& host_kernels() {
  static const HostKernels kernels;
  return kernels;
}

}  // namespace shardplan
