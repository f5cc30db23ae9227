// The tape's rules, on graphs small enough to count by hand.
#include "planner/activations/tape.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr TapeOptions kExact{.rounding = 1};

std::int64_t held(const Tape& tape) {
  std::int64_t sum = 0;
  for (const Event& event : tape.events()) {
    const auto bytes = static_cast<std::int64_t>(tape.storages()[event.storage].bytes);
    sum += event.allocated ? bytes : -bytes;
  }
  return sum;
}

Value trained(Tape& tape, const std::string& name, const Shape& shape) {
  return tape.parameter(name, shape, DType::f32, true);
}

TEST(Tape, LocalsAreFreedAndSavedTensorsAreNot) {
  Tape tape(kExact);
  tape.enter("unit");
  const Value x = tape.outside({10}, DType::f32);
  Value y = mul(x, trained(tape, "w", {10}));  // saves x, which is outside
  EXPECT_EQ(held(tape), 40);
  y = unary("silu", y);  // saves y
  EXPECT_EQ(held(tape), 80);
  y = scale(y);
  EXPECT_EQ(held(tape), 80);
  ASSERT_EQ(tape.saved_by(0).size(), 1U);
  tape.backward(y, tape.allocate("gradient", {10}, DType::f32));
  y.reset();
  EXPECT_EQ(held(tape), 40);  // the gradient of w
}

TEST(Tape, NothingIsKeptWithoutGradients) {
  Tape tape(kExact);
  tape.enter("unit");
  const Value w = trained(tape, "w", {10});
  {
    const NoGrad no_grad(tape);
    const Value y = unary("silu", mul(w, w));
    EXPECT_EQ(held(tape), 40);
    EXPECT_FALSE(y.requires_grad());
  }
  EXPECT_EQ(held(tape), 0);
  const Value frozen = tape.parameter("frozen", {10}, DType::f32, false);
  EXPECT_FALSE(mul(frozen, frozen).requires_grad());
  EXPECT_EQ(held(tape), 0);
}

TEST(Tape, ResidualsShareOneGradient) {
  Tape tape(kExact);
  tape.enter("unit");
  const Value x = mul(trained(tape, "w", {10}), trained(tape, "v", {10}));
  const Value y = add(x, scale(x));
  const std::int64_t before = held(tape);
  tape.backward(y, tape.allocate("gradient", {10}, DType::f32));
  EXPECT_EQ(held(tape) - before, 80);  // w's and v's
}

// A DTensor's second gradient makes a third tensor.
TEST(Tape, SomeGradientsAreAddedApart) {
  const auto peak = [](bool apart) {
    Tape tape(kExact);
    tape.enter("unit");
    Value x = mul(trained(tape, "w", {10}), trained(tape, "v", {10}));
    if (apart) tape.adds_apart(x);
    Value y = add(scale(x), scale(x));
    x.reset();
    const std::size_t before = tape.events().size();
    const Value gradient = tape.allocate("gradient", {10}, DType::f32);
    tape.backward(std::move(y), gradient);
    std::size_t made = 0;
    for (std::size_t i = before; i < tape.events().size(); ++i) made += tape.events()[i].allocated ? 1U : 0U;
    return made;
  };
  EXPECT_EQ(peak(true), peak(false) + 1);
}

TEST(Tape, OneParameterHasOneGradient) {
  Tape tape(kExact);
  tape.enter("unit");
  Value y = mul(trained(tape, "w", {10}), trained(tape, "w", {10}));
  tape.backward(y, tape.allocate("gradient", {10}, DType::f32));
  y.reset();
  EXPECT_EQ(held(tape), 40);
}

TEST(Tape, AnEngineTakesGradients) {
  Tape tape({.rounding = 1, .keeps_gradients = false});
  tape.enter("unit");
  Value y = mul(trained(tape, "w", {10}), trained(tape, "v", {10}));
  tape.backward(y, tape.allocate("gradient", {10}, DType::f32));
  y.reset();
  EXPECT_EQ(held(tape), 0);
}

TEST(Tape, ACheckpointKeepsItsInputOnly) {
  Tape tape(kExact);
  tape.enter("unit");
  const auto block = [&](const Value& x) { return unary("silu", unary("silu", mul(x, trained(tape, "w", {10})))); };
  Value x = mul(tape.outside({10}, DType::f32), trained(tape, "v", {10}));
  Value y = tape.checkpoint(block, x);
  EXPECT_EQ(held(tape), 80);  // its input and its output
  x.reset();
  y = scale(y);
  EXPECT_EQ(held(tape), 80);
  tape.backward(y, tape.allocate("gradient", {10}, DType::f32));
  y.reset();
  EXPECT_EQ(held(tape), 80);  // w's and v's gradients
}

// What has been allocated so far of this pass, by operation, in order.
std::vector<std::string_view> made_in(const Tape& tape, Pass pass) {
  std::vector<std::string_view> names;
  for (const Event& event : tape.events()) {
    const Storage& storage = tape.storages()[event.storage];
    if (event.allocated && storage.pass == pass) names.push_back(storage.name);
  }
  return names;
}

using Names = std::vector<std::string_view>;

// scale's backward needs nothing, so it comes first; silu's asks for its input, and there the function stops.
TEST(Tape, ACheckpointRunsAgainWhenItIsAskedAndAsFarAsItMust) {
  for (const bool reentrant : {false, true}) {
    Tape tape(kExact);
    tape.enter("unit");
    const auto block = [&](const Value& x) { return neg(unary("silu", mul(x, trained(tape, "w", {10})))); };
    const Value x = tape.outside({10}, DType::f32);
    Value y = reentrant ? tape.reentrant_checkpoint(block, x) : tape.checkpoint(block, x);
    EXPECT_EQ(held(tape), 40);
    tape.backward(y, tape.outside({10}, DType::f32));
    const Names expected =
        reentrant ? Names{"mul", "silu", "neg", "neg", "silu", "w"} : Names{"neg", "mul", "silu", "w"};
    EXPECT_EQ(made_in(tape, Pass::backward), expected);
  }
}

// What an operation saves of its own making is there only once it has been computed.
TEST(Tape, ACheckpointComputesWhatIsSavedLast) {
  Tape tape(kExact);
  tape.enter("unit");
  const auto block = [&](const Value& x) { return unary_of_output("tanh", mul(x, trained(tape, "w", {10}))); };
  Value y = tape.checkpoint(block, tape.outside({10}, DType::f32));
  tape.backward(y, tape.outside({10}, DType::f32));
  EXPECT_EQ(made_in(tape, Pass::backward), (Names{"mul", "tanh", "tanh", "w"}));
}

// Several outputs, of which one has no gradient: the node that would have made it is passed over, and holds nothing.
TEST(Tape, ACheckpointedNodeWithoutAGradientHoldsNothing) {
  Tape tape(kExact);
  tape.enter("unit");
  const auto block = [&](std::span<const Value> inputs) {
    const Value z = mul(inputs[0], trained(tape, "w", {10}));
    return std::vector<Value>{unary("silu", z), unary("gelu", scale(z))};
  };
  const Value x = tape.outside({10}, DType::f32);
  std::vector<Value> outputs = tape.checkpoint_all(block, std::span(&x, 1));
  tape.backward(outputs[0], tape.outside({10}, DType::f32));
  outputs.clear();
  EXPECT_EQ(held(tape), 40);  // w's gradient
}

// A product of bf16 with fp32 has a gradient in fp32, which is cast once the factors that were made again are gone.
TEST(Tape, WhatIsMadeAgainGoesBeforeGradientsAreCast) {
  Tape tape(kExact);
  tape.enter("unit");
  const Value x = tape.outside({100}, DType::bf16);
  Value y = tape.checkpoint(
      [&](const Value& input) {
        const Value narrow = mul(input, tape.parameter("w", {100}, DType::bf16, true));
        return mul(narrow, scale(tape.outside({100}, DType::f32)));
      },
      x);
  tape.backward(y, tape.outside({100}, DType::f32));
  std::int64_t level = 0;
  std::int64_t at_cast = 0;
  for (const Event& event : tape.events()) {
    const Storage& storage = tape.storages()[event.storage];
    level += (event.allocated ? 1 : -1) * static_cast<std::int64_t>(storage.bytes);
    if (event.allocated && storage.name == "to") at_cast = level;
  }
  EXPECT_EQ(at_cast, 400 + 400 + 200);  // the output, its fp32 gradient and that one cast
}

// A selective checkpoint: what is chosen behind the point where the function stops waits for the last of its nodes.
TEST(Tape, WhatIsChosenAndNotTakenLivesAsLongAsItsCheckpoint) {
  Tape tape(kExact);
  tape.enter("unit");
  const Value x = tape.outside({10}, DType::f32);
  const auto chooses_silu = [] { return [](std::string_view operation) { return operation == "silu"; }; };
  Value y = tape.selective_checkpoint(
      [&](const Value& input) { return scale(unary("silu", mul(input, trained(tape, "w", {10})))); }, x, chooses_silu);
  EXPECT_EQ(held(tape), 80);  // silu's output and the block's
  tape.backward(y, tape.outside({10}, DType::f32));
  EXPECT_EQ(held(tape), 40 + 40);
  EXPECT_EQ(made_in(tape, Pass::backward), (Names{"mul", "mul", "silu", "w"}));
}

TEST(Tape, ALeafAndItsGradientLiveAsLongAsTheGraph) {
  Tape tape(kExact);
  tape.enter("unit");
  Value x = tape.leaf(tape.allocate("x", {10}, DType::f32));
  Value y = neg(x);
  x.reset();
  EXPECT_EQ(held(tape), 80);
  tape.backward(y, tape.outside({10}, DType::f32));
  y.reset();
  EXPECT_EQ(held(tape), 0);
  EXPECT_EQ(made_in(tape, Pass::backward), (Names{"neg"}));
}

TEST(Tape, SizesAreRounded) {
  Tape tape;
  tape.enter("unit");
  const Value x = tape.allocate("x", {1}, DType::f32);
  EXPECT_EQ(held(tape), 512);
  const Value empty = tape.allocate("empty", {0}, DType::f32);
  EXPECT_EQ(held(tape), 512);
}

// Spans that stand for several equal blocks add up to those blocks run one by one.
TEST(Activity, EqualBlocksCountAsOften) {
  const auto run = [](std::uint64_t blocks, bool folded) {
    Tape tape(kExact);
    tape.enter("first");
    Value x = mul(tape.outside({10}, DType::f32), trained(tape, "v", {10}));
    const std::uint64_t middle = folded ? blocks - 2 : 1;
    std::uint64_t number = 0;
    for (std::uint64_t i = 0; i < blocks; i += i == 1 ? middle : 1) {
      tape.enter("block." + std::to_string(number), i == 1 ? middle : 1);
      x = add(x, unary("silu", mul(x, trained(tape, "w" + std::to_string(number++), {10}))));
    }
    Activity activity{{}, saved_tensors(tape)};
    tape.backward(x, tape.allocate("gradient", {10}, DType::f32));
    activity.spans = spans_of(tape);
    return activity;
  };
  const Activity folded = run(9, true);
  const Activity whole = run(9, false);
  EXPECT_EQ(sum(after_forward(folded)), sum(after_forward(whole)));
  EXPECT_EQ(sum(peak_of(folded).held), sum(peak_of(whole).held));
  Bytes saved;
  for (const SavedByUnit& unit : folded.saved) saved += unit.times * unit.bytes;
  Bytes saved_whole;
  for (const SavedByUnit& unit : whole.saved) saved_whole += unit.times * unit.bytes;
  EXPECT_EQ(saved, saved_whole);
}

}  // namespace
}  // namespace shardplan::autograd
