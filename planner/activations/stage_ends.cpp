#include "planner/activations/stage_ends.h"

#include <utility>

namespace shardplan::autograd {

Value received(Tape& tape, Shape shape, DType dtype) {
  tape.enter("received");
  const Value before = tape.parameter("the stage before", {1}, dtype, true);
  return tape.record("received", std::span(&before, 1), tape.allocate("received", std::move(shape), dtype), {},
                     [](Tape&, std::span<const Value>, std::vector<Value>&) { return std::vector<Value>(1); });
}

Value sent(const Value& end, bool keeps_gradient) {
  Tape& tape = end.tape();
  return tape.record(
      "send", std::span(&end, 1), tape.allocate("sent", {0}, end.dtype()), {},
      [shape = end.shape(), dtype = end.dtype(), keeps_gradient](Tape& t, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients;
        gradients.push_back(t.allocate("received gradient", shape, dtype));
        if (keeps_gradient) t.keep(gradients[0]);
        return gradients;
      });
}

}  // namespace shardplan::autograd
