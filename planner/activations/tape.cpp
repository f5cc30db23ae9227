#include "planner/activations/tape.h"

#include <algorithm>

#include "base/error.h"

namespace shardplan::autograd {
namespace {

// An edge to parameter i has this plus i as its node.
constexpr std::uint32_t kParameters = 1U << 31;

bool is_parameter(const Edge& edge) {
  return edge.node >= kParameters && edge.node != Edge::kNowhere;
}

}  // namespace

std::string_view name(Purpose purpose) {
  switch (purpose) {
    case Purpose::activation:
      return "activations";
    case Purpose::loss:
      return "loss";
    case Purpose::gradient:
      return "gradients";
    case Purpose::workspace:
      return "workspace";
    case Purpose::outside:
      return "outside";
  }
  SHARDPLAN_CHECK(false, "an unknown purpose");
  return {};
}

Value::Value(Tape& tape, std::uint32_t storage, Shape shape, DType dtype)
    : tape_(&tape), storage_(storage), dtype_(dtype), shape_(std::move(shape)) {
  tape.retain(storage);
}

Value::Value(const Value& other)
    : tape_(other.tape_),
      storage_(other.storage_),
      edge_(other.edge_),
      requires_grad_(other.requires_grad_),
      layout_(other.layout_),
      dtype_(other.dtype_),
      shape_(other.shape_) {
  if (tape_ != nullptr) tape_->retain(storage_);
}

Value::Value(Value&& other) noexcept
    : tape_(std::exchange(other.tape_, nullptr)),
      storage_(other.storage_),
      edge_(other.edge_),
      requires_grad_(other.requires_grad_),
      layout_(other.layout_),
      dtype_(other.dtype_),
      shape_(std::move(other.shape_)) {}

Value& Value::operator=(const Value& other) {
  if (this != &other) *this = Value(other);
  return *this;
}

Value& Value::operator=(Value&& other) noexcept {
  if (this == &other) return *this;
  reset();
  tape_ = std::exchange(other.tape_, nullptr);
  storage_ = other.storage_;
  edge_ = other.edge_;
  requires_grad_ = other.requires_grad_;
  layout_ = other.layout_;
  dtype_ = other.dtype_;
  shape_ = std::move(other.shape_);
  return *this;
}

void Value::reset() {
  if (tape_ != nullptr) std::exchange(tape_, nullptr)->release(storage_);
}

std::uint64_t Value::size(int dim) const {
  const auto dims = static_cast<int>(shape_.size());
  const int place = dim < 0 ? dims + dim : dim;
  SHARDPLAN_CHECK(place >= 0 && place < dims, "a dim that the tensor does not have");
  return shape_[static_cast<std::size_t>(place)];
}

Value Value::viewed(Shape shape) const {
  Value view = *this;
  view.shape_ = std::move(shape);
  return view;
}

Value Value::laid_out(Layout layout) const {
  Value view = *this;
  view.layout_ = layout;
  return view;
}

Value Value::detached() const {
  Value value = *this;
  value.requires_grad_ = false;
  value.edge_ = {};
  return value;
}

Tape::Tape(const TapeOptions& options) : options_(options) {
  SHARDPLAN_CHECK(options.rounding > 0, "sizes are rounded to a multiple of something");
}

// Nodes hold Values, whose release needs storages_ and events_.
Tape::~Tape() {
  kept_.clear();
  chosen_.clear();
  casts_.clear();
  nodes_.clear();
  gradients_.clear();
  parameters_.clear();
}

void Tape::enter(std::string_view unit, std::uint64_t times) {
  const auto known = std::find_if(units_.rbegin(), units_.rend(), [&](const TapeUnit& u) { return u.name == unit; });
  if (known == units_.rend()) {
    unit_ = static_cast<std::uint32_t>(units_.size());
    units_.push_back({std::string(unit), times});
  } else {
    unit_ = static_cast<std::uint32_t>(units_.rend() - known - 1);
  }
  mark();
}

void Tape::passes(std::string_view module, const Value& x) {
  if (pass_ == Pass::forward) made_.push_back({unit_, module, x.elements()});
}

void Tape::attend(std::uint64_t queries, std::uint64_t keys, bool causal) {
  if (pass_ == Pass::forward) attention_.push_back({unit_, queries, keys, causal});
}

Purpose Tape::set_purpose(Purpose purpose) {
  return std::exchange(purpose_, purpose);
}

bool Tape::set_grad_enabled(bool enabled) {
  return std::exchange(grad_enabled_, enabled);
}

bool Tape::set_training(bool training) {
  return std::exchange(training_, training);
}

void Tape::mark() {
  if (!marks_.empty()) {
    Mark& last = marks_.back();
    if (last.unit == unit_ && last.pass == pass_) return;
    if (last.event == events_.size()) {
      last = {events_.size(), unit_, pass_};
      return;
    }
  }
  marks_.push_back({events_.size(), unit_, pass_});
}

std::uint32_t Tape::add_storage(std::string_view operation, const Shape& shape, DType dtype, Purpose purpose) {
  Storage storage;
  storage.name = operation;
  storage.unit = unit_;
  storage.pass = pass_;
  storage.purpose = purpose;
  storage.bytes = round_up(bytes_for(dtype, shardplan::elements(shape)).count(), options_.rounding);
  if (storage.bytes > INT64_MAX) throw_overflow("+", storage.bytes, 0);
  storage.shape = shape;
  storage.dtype = dtype;
  const auto index = static_cast<std::uint32_t>(storages_.size());
  storages_.push_back(std::move(storage));
  if (purpose != Purpose::outside && storages_.back().bytes > 0) events_.push_back({index, true, 1});
  return index;
}

void Tape::release(std::uint32_t storage) {
  Storage& released = storages_[storage];
  if (--released.references > 0) return;
  if (released.purpose != Purpose::outside && released.bytes > 0) events_.push_back({storage, false, freed_times_});
}

void Tape::release_kept() {
  for (Value& value : kept_) {
    freed_times_ = units_[storages_[value.storage_].unit].times;
    value.reset();
  }
  freed_times_ = 1;
  kept_.clear();
}

void Tape::end_autocast() {
  autocast_.reset();
  casts_.clear();
}

Value* Tape::cached_cast(const Value& value) {
  if (!grad_enabled_ || !value.requires_grad_ || !is_parameter(value.edge_) || value.dtype() != DType::f32)
    return nullptr;
  return &casts_[value.storage_];
}

Value Tape::outside(Shape shape, DType dtype) {
  const std::uint32_t storage = add_storage("outside", shape, dtype, Purpose::outside);
  return {*this, storage, std::move(shape), dtype};
}

Value Tape::parameter(const std::string& name, const Shape& shape, DType dtype, bool trainable) {
  const auto [entry, added] = parameters_.try_emplace(name);
  Value& value = entry->second;
  if (!added) return value;
  value = outside(shape, dtype);
  parameter_names_[value.storage_] = entry->first;
  value.requires_grad_ = trainable;
  if (trainable) {
    value.edge_.node = kParameters + static_cast<std::uint32_t>(gradients_.size());
    gradients_.push_back({entry->first, {}});
  }
  return value;
}

Value Tape::allocate(std::string_view operation, Shape shape, DType dtype, Layout layout) {
  const std::uint32_t storage = add_storage(operation, shape, dtype, purpose_);
  Value value(*this, storage, std::move(shape), dtype);
  value.layout_ = layout;
  return value;
}

Value Tape::workspace(std::string_view operation, Bytes bytes) {
  const Shape shape{bytes.count()};
  return {*this, add_storage(operation, shape, DType::u8, Purpose::workspace), shape, DType::u8};
}

std::string_view Tape::parameter_among(std::span<const Value> inputs) const {
  for (const Value& input : inputs) {
    if (!input.defined() || storages_[input.storage_].purpose != Purpose::outside) continue;
    const auto name = parameter_names_.find(input.storage_);
    if (name != parameter_names_.end()) return name->second;
  }
  return {};
}

bool Tape::is_named(const Value& value) const {
  return parameter_names_.contains(value.storage_);
}

// A table's rows are looked up by indices, which have no part in the graph.
void Tape::note(std::string_view operation, std::string_view parameter, std::span<const Value> inputs,
                const Value& output) {
  if (parameter.empty() || pass_ != Pass::forward) return;
  const auto other = [&](const Value& input) { return input.defined() && !is_named(input); };
  if (operation != "embedding" && std::none_of(inputs.begin(), inputs.end(), other)) return;
  made_.push_back({unit_, parameter, output.elements()});
}

Value Tape::record(std::string_view operation, std::span<const Value> inputs, Value output, std::vector<Value> saved,
                   Formula formula) {
  std::vector<Value> outputs;
  outputs.push_back(std::move(output));
  return std::move(record(operation, inputs, std::move(outputs), std::move(saved), std::move(formula))[0]);
}

std::vector<Value> Tape::record(std::string_view operation, std::span<const Value> inputs, std::vector<Value> outputs,
                                std::vector<Value> saved, Formula formula) {
  if (selection_ != nullptr) select(operation, inputs, outputs, saved);
  const bool recorded =
      grad_enabled_ && std::any_of(inputs.begin(), inputs.end(), [](const Value& v) { return v.requires_grad(); });
  const std::string_view parameter = parameter_among(inputs);
  note(operation, parameter, inputs, outputs[0]);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    Storage& made = storages_[outputs[i].storage_];
    if (made.name == operation && made.parameter.empty()) made.parameter = parameter;
    outputs[i].requires_grad_ = recorded;
    outputs[i].edge_ =
        recorded ? Edge{static_cast<std::uint32_t>(nodes_.size()), static_cast<std::uint32_t>(i)} : Edge{};
  }
  if (!recorded) return outputs;
  Node node = node_of(operation);
  node.parameter = parameter;
  node.inputs.reserve(inputs.size());
  for (const Value& input : inputs) node.inputs.push_back(input.requires_grad() ? input.edge_ : Edge{});
  // What a node saves has no history of its own: it is the graph that leads to it.
  for (Value& value : saved) value = value.detached();
  if (keeps_saved_) node.saved = std::move(saved);
  node.outputs = static_cast<std::uint32_t>(outputs.size());
  node.formula = std::move(formula);
  nodes_.push_back(std::move(node));
  return outputs;
}

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

Value Tape::requiring_grad(const Value& value) {
  Value result = value;
  result.requires_grad_ = true;
  return result;
}

Value Tape::leaf(const Value& value) {
  Value leaf = value.detached();
  leaf.requires_grad_ = true;
  leaf.edge_ = {static_cast<std::uint32_t>(nodes_.size()), 0};
  nodes_.emplace_back();
  return leaf;
}

bool Tape::adds_in_place(const Value& sum) const {
  return options_.adds_in_place && storages_[sum.storage_].references == 1;
}

void Tape::accumulate(Value& sum, Value gradient) {
  if (!sum.defined()) {
    sum = std::move(gradient);
  } else if (!adds_in_place(sum)) {
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
  if (is_parameter(edge)) {
    const std::size_t parameter = edge.node - kParameters;
    if (asked_for_ != nullptr) {
      accumulate((*asked_for_)[parameter], std::move(gradient));
    } else {
      accumulate_parameter(gradients_[parameter], std::move(gradient));
    }
    return;
  }
  Node& node = nodes_[edge.node];
  node.gradients.resize(node.outputs);
  accumulate(node.gradients[edge.output], std::move(gradient));
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
    if (!node.chosen.empty()) chosen_ = std::move(node.chosen);
    std::vector<Value> gradients = node.formula(*this, node.saved, incoming);
    incoming.clear();
    node.saved.clear();
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
  output.reset();
  run(0);
  nodes_.clear();
  set_grad_enabled(enabled);
  pass_ = pass;
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

Tape::Node Tape::node_of(std::string_view operation) const {
  Node node;
  node.operation = operation;
  node.unit = unit_;
  node.purpose = purpose_;
  return node;
}

void Tape::append(Node node, std::span<Value> outputs) {
  node.outputs = static_cast<std::uint32_t>(outputs.size());
  for (std::uint32_t i = 0; i < node.outputs; ++i) {
    if (outputs[i].requires_grad()) outputs[i].edge_ = {static_cast<std::uint32_t>(nodes_.size()), i};
  }
  nodes_.push_back(std::move(node));
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
    SHARDPLAN_CHECK(is_parameter(parameter.edge_), "a trained parameter");
    result.of_parameters.push_back(std::move(of_all[parameter.edge_.node - kParameters]));
  }
  result.output = output.detached();
  set_grad_enabled(enabled);
  return result;
}

std::vector<SavedStorage> Tape::saved_by(std::uint32_t unit) const {
  std::map<std::uint32_t, std::vector<Keeper>> storages;
  for (const Node& node : nodes_) {
    if (node.unit != unit) continue;
    for (const std::vector<Value>* values : {&node.saved, &node.chosen}) {
      for (const Value& value : *values) {
        if (storages_[value.storage_].purpose == Purpose::outside) continue;
        std::vector<Keeper>& keepers = storages[value.storage_];
        const Keeper keeper{node.operation, node.parameter};
        if (std::find(keepers.begin(), keepers.end(), keeper) == keepers.end()) keepers.push_back(keeper);
      }
    }
  }
  std::vector<SavedStorage> saved;
  for (auto& [storage, keepers] : storages) saved.push_back({storage, std::move(keepers)});
  return saved;
}

}  // namespace shardplan::autograd
