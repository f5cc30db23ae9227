// Autograd's bookkeeping, on shapes alone: which tensors a model's forward leaves alive for its backward, and how much
// is alive at every moment of both.
//
// A profile (planner/activations/profiles.h) writes a model's forward in C++ the way the model's own code reads, on
// Values instead of tensors:
//
//   Value residual = hidden;
//   hidden = rms_norm(hidden, block.norm("input_layernorm"));
//   ...
//   return add(residual, hidden);
//
// A Value is a handle on a storage, as a Python variable is: copies and views share the storage, and it is freed when
// the last handle goes, which a function's locals do when it returns. An operation (planner/activations/torch_ops.h)
// allocates its output and records a Node that holds what PyTorch's formula for it saves (tools/autograd/
// derivatives.yaml). backward() runs the nodes in reverse, as torch/csrc/autograd/engine.cpp does: gradients are
// allocated, added up, and dropped, and each node lets go of what it saved once it has run.
//
// What comes out is the list of allocations and frees in order. No bytes are held, so shapes may be of any size.
//
// One thread per Tape. Handles must not outlive their tape.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/dtype.h"
#include "planner/catalog.h"

namespace shardplan::autograd {

class Tape;

// What the bytes of a storage are for: the lines of a report.
enum class Purpose : std::uint8_t {
  activation,  // outputs and gradients of activations
  loss,        // logits and what is made of them
  gradient,    // of a parameter
  workspace,   // that a kernel needs while it runs
  outside,     // parameters, buffers and the batch: not of this step's making, so not counted
};
inline constexpr std::size_t kPurposes = 4;  // those that are counted
std::string_view name(Purpose purpose);

enum class Pass : std::uint8_t { forward, backward };

// Where gradients of an output go: into input `output` of node `node`, or into a parameter.
struct Edge {
  static constexpr std::uint32_t kNowhere = std::numeric_limits<std::uint32_t>::max();
  static constexpr std::uint32_t kParameters = 1U << 31;  // plus i: into parameter i
  std::uint32_t node = kNowhere;
  std::uint32_t output = 0;

  bool is_parameter() const { return node >= kParameters && node != kNowhere; }
};

// How a tensor lies in its storage, as far as it decides whether a view needs a copy: in the order of its dims, or with
// dims 1 and 2 swapped. A projection, split into heads and transposed, is [b, h, s, d] and lies as [b, s, h, d].
// With gaps between its rows (a part of a wider tensor), it needs one always.
enum class Layout : std::uint8_t { in_order, swapped, with_gaps };

class Value {
 public:
  Value() = default;
  Value(const Value& other);
  Value(Value&& other) noexcept;
  Value& operator=(const Value& other);
  Value& operator=(Value&& other) noexcept;
  ~Value() { reset(); }

  bool defined() const { return tape_ != nullptr; }
  void reset();  // lets go of the storage, as `del` does

  const Shape& shape() const { return shape_; }
  std::uint64_t size(int dim) const;  // dims count from the end below 0, as in PyTorch
  std::uint64_t elements() const { return shardplan::elements(shape_); }
  DType dtype() const { return dtype_; }
  bool requires_grad() const { return requires_grad_; }
  Layout layout() const { return layout_; }
  Tape& tape() const { return *tape_; }

  // The same storage under another shape: a view that keeps the number of elements, or a part of it.
  Value viewed(Shape shape) const;
  Value laid_out(Layout layout) const;
  // The same values without a history.
  Value detached() const;
  std::uint32_t storage() const { return storage_; }  // index into Tape::storages

 private:
  friend class Tape;
  Value(Tape& tape, std::uint32_t storage, Shape shape, DType dtype);

  Tape* tape_ = nullptr;
  std::uint32_t storage_ = 0;
  Edge edge_;
  bool requires_grad_ = false;
  Layout layout_ = Layout::in_order;
  DType dtype_ = DType::f32;
  Shape shape_;
};

// A node's formula: from the gradients of its outputs (undefined where nothing came) to those of its inputs (undefined
// where none is needed). It takes the incoming ones, so that it may hand one on or let it go. It captures shapes, never
// Values: what a node keeps alive is what it saved.
using Formula =
    std::function<std::vector<Value>(Tape& tape, std::span<const Value> saved, std::vector<Value>& incoming)>;

struct Storage {
  std::string_view name;       // of the operation that made it; a literal
  std::string_view parameter;  // that the operation took, by its whole name; empty: none
  std::uint32_t unit = 0;
  Pass pass = Pass::forward;
  Purpose purpose = Purpose::activation;
  std::uint64_t bytes = 0;
  std::uint32_t references = 0;
  Shape shape;
  DType dtype = DType::f32;
};

// An allocation or a free of a whole storage.
struct Event {
  std::uint32_t storage = 0;
  bool allocated = false;
  // Of how many equal storages, in a row of equal units, it is the last that goes: see Tape::keep.
  std::uint64_t times = 1;
};

// From here on, until the next mark, events belong to this pass of this unit.
struct Mark {
  std::size_t event = 0;
  std::uint32_t unit = 0;
  Pass pass = Pass::forward;
};

// An operation whose node holds a storage, and the parameter that it took, if any.
struct Keeper {
  std::string_view operation;
  std::string_view parameter;
  bool operator==(const Keeper&) const = default;
};
struct SavedStorage {
  std::uint32_t storage = 0;
  std::vector<Keeper> keepers;  // each once, in order of the nodes
};

// What an operation of a forward made of a parameter and of something else: elements of its first output. Of a module without
// parameters, what passes it, where the forward says so.
struct Made {
  std::uint32_t unit = 0;
  std::string_view parameter;  // its whole name, or the module's below the unit
  std::uint64_t elements = 0;
};

// One call of attention in a forward: between how many queries of the whole batch and how many keys of each, and whether its kernel
// leaves out the keys behind a query. Scores that are tensors are of all pairs.
struct Attention {
  std::uint32_t unit = 0;
  std::uint64_t queries = 0;
  std::uint64_t keys = 0;
  bool causal = false;
  bool operator==(const Attention&) const = default;
};

struct TapeUnit {
  std::string name;
  std::uint64_t times = 1;
};

struct TapeOptions {
  // Sizes are rounded up to multiples of this: 512 as the CUDA caching allocator does (c10/cuda/CUDACachingAllocator.cpp,
  // kMinBlockSize), or 1 to count what tensors hold.
  std::uint64_t rounding = 512;
  // True: of equal units in a row the first, one of the middle and the last are run, the middle one for all of its kin.
  // False: each is run, for a replay through an allocator (planner/activations/allocator.h).
  bool folds = true;
  // True: a parameter's gradient stays from its first contribution on, as PyTorch's .grad does. False: an engine that
  // has buffers of its own takes each one as it comes.
  bool keeps_gradients = true;
  // True: a second gradient of a tensor is added to the first in place where nothing else holds that (torch/csrc/autograd/
  // input_buffer.cpp, can_accumulate_inplace). False: into a new tensor, as for subclasses of torch.Tensor, such as the
  // fake ones that memory is measured with.
  bool adds_in_place = true;
};

class Tape {
 public:
  explicit Tape(const TapeOptions& options = {});
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;
  ~Tape();

  // Names the unit that what follows belongs to. `times`: it stands for so many equal ones in a row, all of which leave
  // behind what it does.
  void enter(std::string_view unit, std::uint64_t times = 1);
  // What is allocated from now on is for this; returns what was before.
  Purpose set_purpose(Purpose purpose);

  // A tensor that is there already: a batch, a buffer. Not counted.
  Value outside(Shape shape, DType dtype);
  // The parameter of this whole name: not counted, its gradient is. The same one each time it is asked for.
  Value parameter(const std::string& name, const Shape& shape, DType dtype, bool trainable);
  // A new storage with no history.
  Value allocate(std::string_view operation, Shape shape, DType dtype, Layout layout = Layout::in_order);
  Value workspace(std::string_view operation, Bytes bytes);

  // `output` becomes what an operation made of `inputs`. Where gradients are on and an input needs one, a node is
  // recorded that holds `saved`; else nothing is kept.
  Value record(std::string_view operation, std::span<const Value> inputs, Value output, std::vector<Value> saved,
               Formula formula);
  // The same for several outputs.
  std::vector<Value> record(std::string_view operation, std::span<const Value> inputs, std::vector<Value> outputs,
                            std::vector<Value> saved, Formula formula);

  // What a forward says of itself, for made() and attention(); nothing is allocated by it. `module`: one without parameters of its
  // own, by its name below the unit.
  void passes(std::string_view module, const Value& x);
  void attend(std::uint64_t queries, std::uint64_t keys, bool causal);

  // Holds a value, and those of the equal units that this one stands for, until they all go at once: a cache.
  void keep(const Value& value) { kept_.push_back(value); }
  void release_kept();

  bool grad_enabled() const { return grad_enabled_; }
  bool set_grad_enabled(bool enabled);  // returns what it was
  bool training() const { return training_; }
  bool set_training(bool training);  // returns what it was

  // Said by a formula that has all gradients but for shapes and dtypes of the operands: what a checkpoint made again for its node goes.
  void evaluated();

  // torch.autocast: operations that it lists take their operands in this dtype, and others in fp32 (torch_ops.cpp). A trained
  // parameter is cast once; the copy is kept until autocast ends. What a checkpoint computes again, it does under its own.
  void begin_autocast(DType dtype) { autocast_ = dtype; }
  void end_autocast();
  // What an operation of the list does inside itself, it does without: returns what was on.
  std::optional<DType> switch_autocast(std::optional<DType> dtype) { return std::exchange(autocast_, dtype); }
  const std::optional<DType>& autocast() const { return autocast_; }
  // The copy of a trained fp32 parameter, undefined at first; null for any other value.
  Value* cached_cast(const Value& value);

  // A second gradient of this value is added to the first in a new tensor, whatever else holds that: it is a DTensor, or another
  // subclass of torch.Tensor (torch/csrc/autograd/input_buffer.cpp, can_accumulate_inplace).
  void adds_apart(const Value& value);

  // x.requires_grad_(True) of a value without a history: gradients come as far as this.
  static Value requiring_grad(const Value& value);
  // The same where gradients run to it in this backward: it lives as long as the graph does, and so does its gradient.
  Value leaf(const Value& value);

  // Runs the graph behind `output` with `gradient` as its gradient, and forgets it.
  void backward(Value output, Value gradient);

  // torch.utils.checkpoint (use_reentrant=False, torch/utils/checkpoint.py): runs `function`, whose nodes keep nothing of what they
  // save; the inputs are kept instead. The first of these nodes whose turn comes has `function` run again, up to the last tensor that
  // they would have saved, and each takes its own.
  Value checkpoint(std::function<Value(const Value&)> function, const Value& input);
  // The same for several inputs, and for several outputs.
  using Functions = std::function<std::vector<Value>(std::span<const Value>)>;
  std::vector<Value> checkpoint_all(Functions function, std::span<const Value> inputs);
  // The reentrant kind (use_reentrant=True; Megatron-LM's CheckpointFunction): one node stands for all of `function`. Its backward
  // runs it again to its end, before any gradient of it is there, and then a backward of its own.
  Value reentrant_checkpoint(std::function<Value(const Value&)> function, const Value& input);
  using Function = std::function<Value(std::span<const Value>)>;
  Value reentrant_checkpoint(Function function, std::span<const Value> inputs);

  // A function that was checkpointed runs once more.
  bool runs_again() const { return again_ != nullptr; }

  // Selective checkpointing (torch.utils.checkpoint, create_selective_checkpoint_contexts): the first kind, but what operations put
  // out that the policy chooses is kept, and taken instead of computed again. A policy is asked for each operation in order,
  // by its name, and may count; `make_policy` makes a fresh one for the forward and for the backward.
  using Policy = std::function<bool(std::string_view operation)>;
  using MakePolicy = std::function<Policy()>;
  Value selective_checkpoint(std::function<Value(const Value&)> function, const Value& input,
                             const MakePolicy& make_policy);

  // A function that can be inverted: neither its input nor anything of it is kept. Functions in a row share `last`, which holds
  // what the last of them returned: the backward of each makes its input of that by `inverse`, without gradients, runs
  // `function` on it again, and leaves it there for the one before.
  using Unary = std::function<Value(const Value&)>;
  Value invertible(Unary function, Unary inverse, const Value& input, const std::shared_ptr<Value>& last);

  // torch.enable_grad() under torch.no_grad(): gradients are on inside `function`, and its graph goes when it has returned.
  Value forgetting(const Unary& function, const Value& input);
  // torch.autograd.grad(function(input), (input, *parameters), -gradient, retain_graph=True) under torch.no_grad(). An input without a
  // path to the output has no gradient. The graph lives as long as what is returned.
  struct Gradients {
    std::vector<Value> graph;
    Value output;
    Value of_input;
    std::vector<Value> of_parameters;
  };
  Gradients gradients_of(const Unary& function, const Value& input, std::span<const Value> parameters,
                         const Value& gradient);

  const TapeOptions& options() const { return options_; }

  // What came of it.
  const std::vector<Storage>& storages() const { return storages_; }
  const std::vector<Event>& events() const { return events_; }
  const std::vector<Mark>& marks() const { return marks_; }
  const std::vector<TapeUnit>& units() const { return units_; }
  const std::vector<Made>& made() const { return made_; }
  const std::vector<Attention>& attention() const { return attention_; }
  // What nodes of a unit hold, each storage once, in order of allocation; what is outside is left out. Names are valid as long as
  // the tape lives.
  std::vector<SavedStorage> saved_by(std::uint32_t unit) const;

 private:
  friend class Value;

  struct Frame;      // of a checkpoint: tape_recompute.cpp
  struct Selection;  // of a selective one

  struct Node {
    std::string_view operation;
    std::string_view parameter;  // of the first input that is one
    std::uint32_t unit = 0;
    Purpose purpose = Purpose::activation;
    bool adds_in_place = true;  // gradients to each other
    std::vector<Edge> inputs;
    std::vector<Value> saved;
    std::uint32_t outputs = 1;
    Formula formula;  // none for a leaf
    std::vector<Value> gradients;
    // Inside a checkpoint: in the place of `saved`, filled when its function runs again.
    std::shared_ptr<Frame> frame;
    std::vector<std::shared_ptr<Value>> holders;
  };
  struct Gradient {  // of a parameter
    std::string_view name;
    Value value;
  };

  std::uint32_t add_storage(std::string_view operation, const Shape& shape, DType dtype, Purpose purpose);
  void retain(std::uint32_t storage) { ++storages_[storage].references; }
  void release(std::uint32_t storage);
  void mark();
  bool is_named(const Value& value) const;  // a parameter
  std::string_view parameter_among(std::span<const Value> inputs) const;
  void note(std::string_view operation, std::string_view parameter, std::span<const Value> inputs, const Value& output);
  void select(std::string_view operation, std::span<const Value> inputs, std::vector<Value>& outputs,
              std::vector<Value>& saved);
  void unmake(Value& value);
  template <typename Run>
  auto without_nodes(Run&& run);
  void promise(Node& node, std::size_t count);
  bool stops_before(std::span<const Value> inputs, std::vector<Value>& outputs, std::span<const Value> saved);
  void fulfil(std::span<const Value> saved);
  void run_again(Frame& frame);
  void unpack(Node& node);
  static std::vector<Value> kept_by(const Frame& frame);
  Node node_of(std::string_view operation) const;
  void append(Node node, std::span<Value> outputs);
  std::vector<Value> recompute(const Functions& function, std::span<const Value> inputs,
                               const std::vector<bool>& trained, std::optional<DType> autocast,
                               std::vector<Value>& gradients);
  void run(std::size_t first);
  void accumulate(const Edge& edge, Value gradient);
  void accumulate(Value& sum, Value gradient, bool in_place = true);
  void accumulate_parameter(Gradient& sum, Value gradient);
  bool adds_in_place(const Value& sum) const;

  TapeOptions options_;
  std::vector<Storage> storages_;
  std::vector<Event> events_;
  std::vector<Mark> marks_;
  std::vector<TapeUnit> units_;
  std::vector<Made> made_;
  std::vector<Attention> attention_;
  std::vector<Node> nodes_;
  std::map<std::string, Value> parameters_;
  std::map<std::uint32_t, std::string_view> parameter_names_;  // by storage
  std::vector<Gradient> gradients_;  // by trained parameter; an edge's node is kParameters + its index
  std::vector<Value> kept_;
  std::optional<DType> autocast_;
  std::map<std::uint32_t, Value> casts_;  // by the storage of the parameter
  std::uint64_t freed_times_ = 1;
  std::uint32_t unit_ = 0;
  Pass pass_ = Pass::forward;
  Purpose purpose_ = Purpose::activation;
  bool grad_enabled_ = true;
  bool training_ = true;
  bool keeps_saved_ = true;                 // false in the forward of what one node stands for
  std::shared_ptr<Frame> frame_;            // of the checkpoint whose forward runs
  Frame* again_ = nullptr;                  // of the one whose function runs again
  bool stopped_ = false;                    // it has come as far as it must: what else it makes is not made
  std::vector<Value>* unpacked_ = nullptr;  // what was made again for the node that runs
  Selection* selection_ = nullptr;
  std::vector<Value>* asked_for_ = nullptr;  // gradients of parameters that are returned instead of kept, by parameter
};

// Gradients are off while it lives, as under torch.no_grad().
class NoGrad {
 public:
  explicit NoGrad(Tape& tape) : tape_(tape), before_(tape.set_grad_enabled(false)) {}
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;
  ~NoGrad() { tape_.set_grad_enabled(before_); }

 private:
  Tape& tape_;
  bool before_;
};

// Modules that were told eval() and run under torch.no_grad() while it lives: nothing is dropped, nothing kept.
class Evaluation {
 public:
  explicit Evaluation(Tape& tape) : no_grad_(tape), tape_(tape), before_(tape.set_training(false)) {}
  Evaluation(const Evaluation&) = delete;
  Evaluation& operator=(const Evaluation&) = delete;
  ~Evaluation() { tape_.set_training(before_); }

 private:
  NoGrad no_grad_;
  Tape& tape_;
  bool before_;
};

}  // namespace shardplan::autograd
