// Autograd's engine: gradients along the edges, in a backward and where a forward differentiates.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "planner/activations/tape.h"

namespace shardplan::autograd {

Value Tape::leaf(const Value& value) {
  Value leaf = value.detached();
  leaf.requires_grad_ = true;
  leaf.edge_ = {static_cast<std::uint32_t>(nodes_.size()), 0};
  Node node = node_of("requires_grad_");
  node.saved.push_back(value.detached());
  nodes_.push_back(std::move(node));
  return leaf;
}

bool Tape::adds_in_place(const Value& sum) const {
  return options_.adds_in_place && storages_[sum.storage_].references == 1;
}

void Tape::adds_apart(const Value& value) {
  if (!value.requires_grad() || again_ != nullptr) return;  // what is computed again has no nodes
  SHARDPLAN_CHECK(!value.edge_.is_parameter() && value.edge_.node != Edge::kNowhere, "a value that an operation made");
  nodes_[value.edge_.node].adds_in_place = false;
}

void Tape::accumulate(Value& sum, Value gradient, bool in_place) {
  if (!sum.defined()) {
    sum = std::move(gradient);
  } else if (!in_place || !adds_in_place(sum)) {
    sum = allocate("accumulated gradient", sum.shape(), sum.dtype(), sum.layout());
  }
}

void Tape::accumulate_parameter(Gradient& sum, Value gradient) {
  if (sum.value.defined()) {
    // Contributions of one graph, of checkpoints in it too, are added up before AccumulateGrad runs.
    if (!adds_in_place(sum.value)) {
      const std::uint32_t added = add_storage(sum.name, gradient.shape(), gradient.dtype(), Purpose::gradient);
      sum.value = Value(*this, added, gradient.shape(), gradient.dtype());
    }
    return;
  }
  Storage& storage = storages_[gradient.storage_];
  // AccumulateGrad takes a gradient that is nobody else's and copies any other (torch/csrc/autograd/functions/
  // accumulate_grad.h). Views of a storage that was made for gradients are each somebody's.
  if (storage.purpose == Purpose::gradient) {
    if (options_.keeps_gradients) sum.value = std::move(gradient);
    return;
  }
  if (storage.references == 1 && storage.purpose != Purpose::outside) {
    storage.purpose = Purpose::gradient;
    storage.name = sum.name;
    if (options_.keeps_gradients) sum.value = std::move(gradient);
    return;
  }
  if (!options_.keeps_gradients) return;
  const std::uint32_t copy = add_storage(sum.name, gradient.shape(), gradient.dtype(), Purpose::gradient);
  sum.value = Value(*this, copy, gradient.shape(), gradient.dtype());
}

void Tape::accumulate(const Edge& edge, Value gradient) {
  if (edge.node == Edge::kNowhere || !gradient.defined()) return;
  if (edge.is_parameter()) {
    const std::size_t parameter = edge.node - Edge::kParameters;
    if (asked_for_ != nullptr) {
      accumulate((*asked_for_)[parameter], std::move(gradient));
    } else {
      accumulate_parameter(gradients_[parameter], std::move(gradient));
    }
    return;
  }
  Node& node = nodes_[edge.node];
  node.gradients.resize(node.outputs);
  accumulate(node.gradients[edge.output], std::move(gradient), node.adds_in_place);
}

void Tape::run(std::size_t first) {
  const std::uint32_t unit = unit_;
  const Purpose purpose = purpose_;
  for (std::size_t i = nodes_.size(); i-- > first;) {
    if (!nodes_[i].formula) continue;
    Node node = std::move(nodes_[i]);
    nodes_[i] = {};
    if (node.gradients.empty()) continue;
    unit_ = node.unit;
    purpose_ = node.purpose;
    mark();
    std::vector<Value> incoming = std::move(node.gradients);
    unpack(node);
    std::vector<Value> gradients = node.formula(*this, node.saved, incoming);
    unpacked_ = nullptr;
    incoming.clear();
    node.saved.clear();
    node.frame.reset();
    node.formula = nullptr;
    SHARDPLAN_CHECK(gradients.size() == node.inputs.size(), "a formula gives one gradient for each input");
    for (std::size_t k = 0; k < gradients.size(); ++k) accumulate(node.inputs[k], std::move(gradients[k]));
  }
  unit_ = unit;
  purpose_ = purpose;
}

void Tape::backward(Value output, Value gradient) {
  const Pass pass = std::exchange(pass_, Pass::backward);
  const bool enabled = set_grad_enabled(false);
  accumulate(output.edge_, std::move(gradient));
  if (output.elements() > 1) output.reset();  // a loss is its caller's
  run(0);
  nodes_.clear();
  set_grad_enabled(enabled);
  pass_ = pass;
}

Value Tape::forgetting(const Unary& function, const Value& input) {
  const std::size_t first = nodes_.size();
  const bool enabled = set_grad_enabled(true);
  Value output = function(requiring_grad(input.detached())).detached();
  set_grad_enabled(enabled);
  nodes_.resize(first);
  return output;
}

Tape::Gradients Tape::gradients_of(const Unary& function, const Value& input, std::span<const Value> parameters,
                                   const Value& gradient) {
  const std::size_t first = nodes_.size();
  const bool enabled = set_grad_enabled(true);
  Value output = function(leaf(input));
  set_grad_enabled(false);
  Gradients result;
  for (std::size_t i = first; i < nodes_.size(); ++i) {
    result.graph.insert(result.graph.end(), nodes_[i].saved.begin(), nodes_[i].saved.end());
  }
  std::vector<Value> of_all(gradients_.size());
  std::vector<Value>* before = std::exchange(asked_for_, &of_all);
  accumulate(output.edge_, allocate("neg", gradient.shape(), gradient.dtype()));
  run(first + 1);
  asked_for_ = before;
  Node& start = nodes_[first];
  if (!start.gradients.empty()) result.of_input = std::move(start.gradients[0]);
  nodes_.resize(first);
  for (const Value& parameter : parameters) {
    SHARDPLAN_CHECK(parameter.edge_.is_parameter(), "a trained parameter");
    result.of_parameters.push_back(std::move(of_all[parameter.edge_.node - Edge::kParameters]));
  }
  result.output = output.detached();
  set_grad_enabled(enabled);
  return result;
}

}  // namespace shardplan::autograd
