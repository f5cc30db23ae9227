#include "planner/activations/stage_ends.h"

#include <utility>

namespace shardplan::autograd {

Value received(Tape& tape, Shape shape, DType dtype) {
  tape.enter("received");
  return Tape::requiring_grad(tape.allocate("received", std::move(shape), dtype));
}

Value sent(const Value& hidden) {
  Tape& tape = hidden.tape();
  return tape.record(
      "send", std::span(&hidden, 1), tape.allocate("sent", {0}, hidden.dtype()), {},
      [shape = hidden.shape(), dtype = hidden.dtype()](Tape& t, std::span<const Value>, std::vector<Value>&) {
        std::vector<Value> gradients;
        gradients.push_back(t.allocate("received gradient", shape, dtype));
        return gradients;
      });
}

}  // namespace shardplan::autograd
