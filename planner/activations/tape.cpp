#include "planner/activations/tape.h"

#include <algorithm>

#include "base/error.h"

namespace shardplan::autograd {
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
  // What was before any unit belongs to the first.
  marks_.push_back({marks_.empty() ? 0 : events_.size(), unit_, pass_});
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
  if (stopped_) storage.bytes = 0;
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

// Outside the unit that a copy was made in, those of the equal units that it stands for go with it.
void Tape::end_autocast() {
  autocast_.reset();
  for (auto& [parameter, copy] : casts_) {
    if (!copy.defined()) continue;
    const std::uint32_t unit = storages_[copy.storage_].unit;
    freed_times_ = unit == unit_ ? 1 : units_[unit].times;
    copy.reset();
  }
  freed_times_ = 1;
  casts_.clear();
}

Value* Tape::cached_cast(const Value& value) {
  if (!grad_enabled_ || !value.requires_grad_ || !value.edge_.is_parameter() || value.dtype() != DType::f32)
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
    value.edge_.node = Edge::kParameters + static_cast<std::uint32_t>(gradients_.size());
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
  const bool recorded = grad_enabled_ && !stopped_ &&
                        std::any_of(inputs.begin(), inputs.end(), [](const Value& v) { return v.requires_grad(); });
  const bool computed = !stopped_ && !(recorded && stops_before(inputs, outputs, saved));
  if (selection_ != nullptr && computed) select(operation, inputs, outputs, saved);
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
  // What a node saves has no history of its own: it is the graph that leads to it.
  for (Value& value : saved) value = value.detached();
  if (again_ != nullptr) {
    fulfil(saved);
    return outputs;
  }
  Node node = node_of(operation);
  node.parameter = parameter;
  node.inputs.reserve(inputs.size());
  for (const Value& input : inputs) node.inputs.push_back(input.requires_grad() ? input.edge_ : Edge{});
  if (frame_ != nullptr) {
    promise(node, saved.size());
  } else if (keeps_saved_) {
    node.saved = std::move(saved);
  }
  node.outputs = static_cast<std::uint32_t>(outputs.size());
  node.formula = std::move(formula);
  nodes_.push_back(std::move(node));
  return outputs;
}

Value Tape::requiring_grad(const Value& value) {
  Value result = value;
  result.requires_grad_ = true;
  return result;
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

std::vector<SavedStorage> Tape::saved_by(std::uint32_t unit) const {
  std::map<std::uint32_t, std::vector<Keeper>> storages;
  const auto keep = [&](const Value& value, const Keeper& keeper) {
    if (!value.defined() || storages_[value.storage_].purpose == Purpose::outside) return;
    std::vector<Keeper>& keepers = storages[value.storage_];
    if (std::find(keepers.begin(), keepers.end(), keeper) == keepers.end()) keepers.push_back(keeper);
  };
  for (const Node& node : nodes_) {
    if (node.unit != unit) continue;
    for (const Value& value : node.saved) keep(value, {node.operation, node.parameter});
    if (node.frame == nullptr) continue;
    for (const Value& value : kept_by(*node.frame)) keep(value, {"checkpoint", {}});
  }
  std::vector<SavedStorage> saved;
  for (auto& [storage, keepers] : storages) saved.push_back({storage, std::move(keepers)});
  return saved;
}

}  // namespace shardplan::autograd
