// Functions that run again in the backward: checkpoints, those that keep what a policy chooses, and what is inverted.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/activations/tape.h"

namespace shardplan::autograd {

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

Value Tape::checkpoint(std::function<Value(const Value&)> function, const Value& input) {
  return checkpoint([function = std::move(function)](std::span<const Value> inputs) { return function(inputs[0]); },
                    std::span(&input, 1));
}

Value Tape::checkpoint(Function function, std::span<const Value> inputs) {
  std::vector<Value> outputs = checkpoint_all(
      [function = std::move(function)](std::span<const Value> starts) {
        std::vector<Value> output;
        output.push_back(function(starts));
        return output;
      },
      inputs);
  return std::move(outputs[0]);
}

std::vector<Value> Tape::checkpoint_all(Functions function, std::span<const Value> inputs) {
  std::vector<Value> outputs = without_nodes([&] { return function(inputs); });
  if (std::none_of(outputs.begin(), outputs.end(), [](const Value& output) { return output.requires_grad(); }))
    return outputs;
  Node node = node_of("checkpoint");
  std::vector<bool> trained;
  for (const Value& input : inputs) {
    trained.push_back(input.requires_grad());
    node.inputs.push_back(input.requires_grad() ? input.edge_ : Edge{});
    if (keeps_saved_) node.saved.push_back(input.detached());
  }
  node.formula = [function = std::move(function), trained = std::move(trained), autocast = autocast_](
                     Tape& tape, std::span<const Value> saved, std::vector<Value>& incoming) {
    return tape.recompute(function, saved, trained, autocast, incoming);
  };
  append(std::move(node), outputs);
  return outputs;
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
  const auto among = [](std::span<const Value> values, const Value& value) {
    return std::any_of(values.begin(), values.end(), [&](const Value& v) { return v.storage_ == value.storage_; });
  };
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
  const Function selected = [function = std::move(function), make_policy](std::span<const Value> inputs) {
    Tape& tape = inputs[0].tape();
    if (tape.selection_ != nullptr) return function(inputs[0]);  // its forward
    Selection backward{.policy = make_policy(), .taking = true, .chosen = std::move(tape.chosen_)};
    tape.chosen_.clear();
    tape.selection_ = &backward;
    Value output = function(inputs[0]);
    tape.selection_ = nullptr;
    return output;
  };
  Selection forward{.policy = make_policy()};
  selection_ = &forward;
  Value output = checkpoint(selected, std::span(&input, 1));
  selection_ = nullptr;
  if (output.requires_grad()) nodes_.back().chosen = std::move(forward.chosen);
  return output;
}

}  // namespace shardplan::autograd
