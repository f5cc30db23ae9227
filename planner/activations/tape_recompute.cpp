// Functions that run again in the backward: checkpoints of both kinds, those that keep what a policy chooses, and what is inverted.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/activations/tape.h"

namespace shardplan::autograd {

// ---- Checkpoints: nodes that ask for what they would have saved ----

struct Tape::Frame {
  Functions function;
  std::vector<Value> inputs;
  std::optional<DType> autocast;
  Purpose purpose = Purpose::activation;
  std::vector<Value> chosen{};                  // by the policy of a selective checkpoint
  std::vector<std::weak_ptr<Value>> holders{};  // of all that its nodes would have saved, in order
  std::size_t filled = 0;
  bool ran_again = false;
};

Value Tape::checkpoint(std::function<Value(const Value&)> function, const Value& input) {
  const Functions functions = [function = std::move(function)](std::span<const Value> inputs) {
    std::vector<Value> outputs;
    outputs.push_back(function(inputs[0]));
    return outputs;
  };
  return std::move(checkpoint_all(functions, std::span(&input, 1))[0]);
}

std::vector<Value> Tape::checkpoint_all(Functions function, std::span<const Value> inputs) {
  SHARDPLAN_CHECK(frame_ == nullptr && again_ == nullptr, "no checkpoint inside another one");
  frame_ = std::make_shared<Frame>(Frame{.function = std::move(function),
                                         .inputs = {inputs.begin(), inputs.end()},
                                         .autocast = autocast_,
                                         .purpose = purpose_});
  std::vector<Value> outputs = frame_->function(inputs);
  frame_.reset();  // its nodes hold it
  return outputs;
}

void Tape::promise(Node& node, std::size_t count) {
  if (count == 0) return;
  node.frame = frame_;
  for (std::size_t i = 0; i < count; ++i) {
    node.holders.push_back(std::make_shared<Value>());
    frame_->holders.push_back(node.holders.back());
  }
}

namespace {

bool among(std::span<const Value> values, const Value& value) {
  return std::any_of(values.begin(), values.end(),
                     [&](const Value& other) { return other.defined() && other.storage() == value.storage(); });
}

}  // namespace

// Whether the last of what is asked for goes into this operation, which then is not computed: outputs are taken back.
bool Tape::stops_before(std::span<const Value> inputs, std::vector<Value>& outputs, std::span<const Value> saved) {
  if (again_ == nullptr || again_->filled + saved.size() < again_->holders.size()) return false;
  const auto there = [&](const Value& value) {
    return !value.defined() || storages_[value.storage_].purpose == Purpose::outside || among(inputs, value);
  };
  if (!std::all_of(saved.begin(), saved.end(), there)) return false;
  for (Value& output : outputs) {
    if (!there(output)) unmake(output);
  }
  return true;
}

// A holder whose node has gone needs nothing.
void Tape::fulfil(std::span<const Value> saved) {
  for (const Value& value : saved) {
    if (const auto holder = again_->holders.at(again_->filled++).lock()) *holder = value;
  }
  stopped_ = again_->filled == again_->holders.size();
}

void Tape::run_again(Frame& frame) {
  frame.ran_again = true;
  again_ = &frame;
  const std::uint32_t unit = unit_;
  const Purpose purpose = set_purpose(frame.purpose);
  const bool enabled = set_grad_enabled(true);
  autocast_ = frame.autocast;
  const std::size_t first = nodes_.size();
  frame.function(frame.inputs);
  nodes_.resize(first);
  end_autocast();
  SHARDPLAN_CHECK(stopped_, "a function that saves as much each time it runs");
  stopped_ = false;
  set_grad_enabled(enabled);
  set_purpose(purpose);
  unit_ = unit;
  again_ = nullptr;
}

void Tape::unpack(Node& node) {
  unpacked_ = node.frame != nullptr ? &node.saved : nullptr;
  if (node.frame == nullptr) return;
  if (!node.frame->ran_again) run_again(*node.frame);
  for (const auto& holder : node.holders) node.saved.push_back(std::move(*holder));
}

void Tape::evaluated() {
  if (unpacked_ != nullptr) unpacked_->clear();
}

std::vector<Value> Tape::kept_by(const Frame& frame) {
  std::vector<Value> kept = frame.inputs;
  kept.insert(kept.end(), frame.chosen.begin(), frame.chosen.end());
  return kept;
}

// ---- One node that stands for all of a function ----

// What a function returns, of which no node stays: one of its own will stand for all.
template <typename Run>
auto Tape::without_nodes(Run&& run) {
  const std::size_t first = nodes_.size();
  const bool keeps_saved = std::exchange(keeps_saved_, false);
  auto output = run();
  keeps_saved_ = keeps_saved;
  nodes_.resize(first);
  return output;
}

std::vector<Value> Tape::recompute(const Functions& function, std::span<const Value> inputs,
                                   const std::vector<bool>& trained, std::optional<DType> autocast,
                                   std::vector<Value>& incoming) {
  const bool enabled = set_grad_enabled(true);
  autocast_ = autocast;
  const std::size_t first = nodes_.size();
  std::vector<Value> starts;
  for (std::size_t i = 0; i < inputs.size(); ++i) starts.push_back(trained[i] ? leaf(inputs[i]) : inputs[i].detached());
  const std::size_t leaves = nodes_.size() - first;
  std::vector<Value> outputs = function(starts);
  end_autocast();
  set_grad_enabled(false);
  for (std::size_t i = 0; i < outputs.size(); ++i) accumulate(outputs[i].edge_, std::move(incoming[i]));
  outputs.clear();
  starts.clear();
  run(first + leaves);
  std::vector<Value> gradients(inputs.size());
  std::size_t next = first;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (!trained[i]) continue;
    Node& node = nodes_[next++];
    if (!node.gradients.empty()) gradients[i] = std::move(node.gradients[0]);
  }
  nodes_.resize(first);
  set_grad_enabled(enabled);
  return gradients;
}

Value Tape::reentrant_checkpoint(std::function<Value(const Value&)> function, const Value& input) {
  return reentrant_checkpoint(
      [function = std::move(function)](std::span<const Value> inputs) { return function(inputs[0]); },
      std::span(&input, 1));
}

Value Tape::reentrant_checkpoint(Function function, std::span<const Value> inputs) {
  Value output = without_nodes([&] { return function(inputs); });
  if (!output.requires_grad()) return output;
  Node node = node_of("checkpoint");
  std::vector<bool> trained;
  for (const Value& input : inputs) {
    trained.push_back(input.requires_grad());
    node.inputs.push_back(input.requires_grad() ? input.edge_ : Edge{});
    if (keeps_saved_) node.saved.push_back(input.detached());
  }
  node.formula = [function = std::move(function), trained = std::move(trained), autocast = autocast_](
                     Tape& tape, std::span<const Value> saved, std::vector<Value>& incoming) {
    // The function's backward is Python: what it computed again and the gradient of that live until it returns.
    const Value gradient = incoming[0];
    Value made;
    const Functions once_more = [&](std::span<const Value> again) {
      std::vector<Value> results;
      results.push_back(function(again));
      made = results[0].detached();
      return results;
    };
    return tape.recompute(once_more, saved, trained, autocast, incoming);
  };
  append(std::move(node), std::span(&output, 1));
  return output;
}

Value Tape::invertible(Unary function, Unary inverse, const Value& input, const std::shared_ptr<Value>& last) {
  Value output = without_nodes([&] { return function(input); });
  *last = output.detached();
  if (!output.requires_grad()) return output;
  Node node = node_of("invertible");
  node.inputs.push_back(input.requires_grad() ? input.edge_ : Edge{});
  node.formula = [function = std::move(function), inverse = std::move(inverse), last, autocast = autocast_,
                  trained = input.requires_grad()](Tape& tape, std::span<const Value>, std::vector<Value>& incoming) {
    // The function's backward is Python: its argument and what it computed again live until it returns.
    const Value gradient = incoming[0];
    Value again;
    *last = inverse(*last);
    const Functions once_more = [&](std::span<const Value> inputs) {
      std::vector<Value> results;
      results.push_back(function(inputs[0]));
      again = results[0].detached();
      return results;
    };
    return tape.recompute(once_more, std::span(last.get(), 1), {trained}, autocast, incoming);
  };
  append(std::move(node), std::span(&output, 1));
  return output;
}

// ---- What a selective checkpoint keeps ----

// What it chose: filled in its forward, taken one by one when it runs again.
struct Tape::Selection {
  Policy policy;
  bool taking = false;
  std::vector<Value>& chosen;
  std::size_t next = 0;
};

// Takes back that a storage was allocated, and lets go of it. Nothing can have been freed since but itself.
void Tape::unmake(Value& value) {
  const auto made = std::find_if(events_.rbegin(), events_.rend(), [&](const Event& event) {
    return event.storage == value.storage_ && event.allocated;
  });
  if (made != events_.rend()) {
    const auto place = static_cast<std::size_t>(events_.rend() - made - 1);
    events_.erase(events_.begin() + static_cast<std::ptrdiff_t>(place));
    for (Mark& one : marks_) one.event -= one.event > place ? 1 : 0;
  }
  storages_[value.storage_].bytes = 0;
}

// The outputs of an operation, and what it made to save besides (a log-sum-exp), are kept for the backward or, there, replaced
// by what was kept.
void Tape::select(std::string_view operation, std::span<const Value> inputs, std::vector<Value>& outputs,
                  std::vector<Value>& saved) {
  if (!selection_->policy(operation)) return;
  for (Value& output : outputs) {
    const std::uint32_t fresh = output.storage_;
    if (among(inputs, output)) continue;
    if (!selection_->taking) {
      selection_->chosen.push_back(output.detached());
      continue;
    }
    unmake(output);
    Value kept = std::move(selection_->chosen.at(selection_->next++));
    for (Value& value : saved) {
      if (value.storage_ == fresh) value = kept;
    }
    output = std::move(kept);
  }
  for (Value& value : saved) {
    if (storages_[value.storage_].purpose == Purpose::outside || among(inputs, value) || among(outputs, value))
      continue;
    if (!selection_->taking) {
      selection_->chosen.push_back(value.detached());
      continue;
    }
    unmake(value);
    value = std::move(selection_->chosen.at(selection_->next++));
  }
}

Value Tape::selective_checkpoint(std::function<Value(const Value&)> function, const Value& input,
                                 const MakePolicy& make_policy) {
  const auto selected = [function = std::move(function), make_policy](const Value& x) {
    Tape& tape = x.tape();
    const bool again = tape.again_ != nullptr;
    Selection selection{
        .policy = make_policy(), .taking = again, .chosen = again ? tape.again_->chosen : tape.frame_->chosen};
    tape.selection_ = &selection;
    Value output = function(x);
    tape.selection_ = nullptr;
    return output;
  };
  return checkpoint(selected, input);
}

}  // namespace shardplan::autograd
