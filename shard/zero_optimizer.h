// ZeroOptimizer: carries out a step plan on one rank.
//
//   StepPlan plan = make_step_plan(catalog, setup);                    // the same on every rank
//   ZeroOptimizer optimizer(catalog, plan, device, communicators, options);
//   for (each step) {
//     for (each micro-batch) {
//       optimizer.begin(last ? ProgramKind::last_micro_batch : ProgramKind::train_micro_batch);
//       for (unit = 0 ... n-1)  { optimizer.enter(unit, Pass::forward);  compute;  optimizer.leave(unit); }
//       for (unit = n-1 ... 0)  { optimizer.enter(unit, Pass::backward); compute;  optimizer.leave(unit); }
//     }
//     StepReport report = optimizer.step();
//   }
//
// Losses are means over a rank's micro-batch, multiplied by loss_scale(); gradients are averaged over ranks and the
// plan's A micro-batches (a step with fewer micro-batches still divides by A). The backward of a unit adds to its
// gradient views; a unit that is left without adding contributes zeros.
//
// Invariants:
//   1. Every byte is where the plan says: one arena, and where something is offloaded one of pinned host memory and a file,
//      made by the constructor. A step that does not fail allocates nothing here.
//   2. A call that does not match the plan is a CheckFailure that names the expected and the actual operation.
//   3. A step has one commit point: the agreement of all ranks inside step(). A failure before it (a kernel, a
//      collective, a client that gives up) leaves parameters, moments, masters, loss scale and step number as they
//      were: the step is forgotten, and the next begin() starts it anew. After it the step only rolls forward: scale,
//      clip and step number are fixed, and whatever interrupted it, the next call of begin() or step() finishes it
//      first, with the bits of an undisturbed step.
//   4. A gradient that is not finite, on any rank, in any precision, skips the step on every rank.
//
// Errors: ConfigError (plan and options contradict each other, ranks with different plans), OutOfMemory from the
// constructor (host memory and the disk too), CommunicationError, IoError where something is in a file (enter() and leave()
// too), CheckFailure. After a CommunicationError the communicators are poisoned.
// Threads: one rank's thread. Several optimizers may live in a process. Catalog, plan and device must outlive the
// optimizer.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "planner/step_plan.h"
#include "runtime/device.h"
#include "shard/gradient_reducer.h"
#include "shard/host_buffer.h"
#include "shard/offload_file.h"
#include "shard/offloaded_states.h"
#include "shard/operation_events.h"
#include "shard/options.h"
#include "shard/parameter_index.h"
#include "shard/passing_units.h"
#include "shard/plan_memory.h"
#include "shard/program_cursor.h"
#include "shard/state.h"
#include "shard/step_report.h"
#include "shard/traffic_meter.h"
#include "shard/views.h"

namespace shardplan {

class ZeroOptimizer {
 public:
  // Collective: allocates the arena, compares plans, fills in initial values.
  ZeroOptimizer(const Catalog& catalog, const StepPlan& plan, Device& device, const Communicators& communicators,
                ZeroOptions options);

  void begin(ProgramKind kind);
  // The unit's parameters, and in its backward its gradients, until leave(). Valid for that time only.
  UnitViews enter(std::uint64_t unit, Pass pass);
  void leave(std::uint64_t unit);
  // Ends a step after its last micro-batch.
  StepReport step();

  // On which the client computes: what it puts there runs after what enter() waited for, and before what follows
  // leave(). On the CPU everything has finished when a call returns.
  Stream& compute_stream() { return events_.compute(); }
  // The rank waits until all that has been put on its streams is done: for a client with streams of its own.
  void synchronize();

  const Catalog& catalog() const { return catalog_; }
  const StepPlan& plan() const { return plan_; }
  const ZeroOptions& options() const { return options_; }
  double loss_scale() const { return scaler_.scale(); }
  std::uint64_t steps_applied() const { return steps_applied_; }
  // True between a failure after the commit point and the call that finishes the step.
  bool step_interrupted() const { return commit_.has_value(); }
  // For schedules: takes effect with the next step. The same on every rank.
  void set_learning_rate(std::size_t group, double learning_rate);
  void set_hyperparameters(std::size_t group, const Hyperparameters& values);

  // Collective: the parameters in full precision, tensor by tensor in catalog order, padding and tied tensors left out,
  // whatever the stage. Each call of `visit` gets one whole tensor. Holds one unit's flat buffer in fp32 at a time,
  // beyond the arena. Not inside a program.
  void visit_parameters(const std::function<void(const TensorRange&, std::span<const float>)>& visit);

  // For clients that ignore units, where the plan does not shard parameters (stages 0 to 2, or one shard).
  //
  // A unit's parameters, between programs. The data stays where it is as long as the optimizer lives, and changes in
  // step(); the span is valid until the next call.
  std::span<const TensorView> parameters(std::uint64_t unit);
  // A whole micro-batch in the place of begin(), enter() and leave(): adds each gradient to its contribution (in fp32,
  // rounded to the wire dtype), then reduces. One for each tensor in the catalog's order, tied ones included, fp32, bf16
  // or fp16, in memory of the device; one without elements contributes zeros, as a frozen tensor's must.
  void reduce_gradients(ProgramKind kind, std::span<const ConstElements> gradients);

  // State in and out (shard/state.h), between steps: no collective, and on each rank what it holds.
  StepState step_state() const;
  // Every element of the state is visited on exactly one rank of the world: what one rank keeps if nobody shards is
  // shared out all the same. In the catalog's order.
  void visit_state(const StateVisitor& visit);
  // What visit_state() would visit, without values: one call for each run of elements, in the same order.
  void list_state(const StateLister& list) const;
  // Asks for whatever this rank holds: its shard, or all of a tensor where that is replicated. Drops micro-batches
  // that were begun. Throws ConfigError, and changes nothing, for a loss scale that is none. If `load` throws, what
  // this rank holds is half old and half new: all but load_state() is a CheckFailure until a load succeeds.
  void load_state(const StepState& step_state, const StateLoader& load);

 private:
  // Sums of squares, or norms: of all gradients, then of each parameter group.
  using NormSums = std::array<double, kMostGroups + 1>;

  // What is fixed at the commit point, and how far the step has come.
  struct Commit {
    StepReport report;
    std::array<Hyperparameters, kMostGroups> groups{};
    std::array<float, kMostGroups> gradient_factors{};  // clip factor over loss scale
    ProgramCursor next;                                 // operation of the update program
    std::size_t done_in_unit =
        0;  // of that operation's unit: tensors updated (and blocks written), or buffers gathered
  };

  // An array that keeps a kind of state, or a rounded copy of it.
  struct StateArray {
    BufferRole role = BufferRole::parameter;
    std::uint64_t unit = 0;
    std::size_t buffer = 0;
    DType dtype = DType::f32;
    Range held;  // of the flat buffer
  };
  using Access = OffloadedStates::Access;

  void fill_initial_values();
  void store_initial(std::uint64_t unit, std::size_t buffer, std::uint64_t first, std::span<const float> values);

  void execute(const Operation& operation);
  // `done` counts the flat buffers that are gathered: an interrupted gather goes on where its peers are.
  void gather(const Operation& operation, std::size_t& done);
  // Of a micro-batch; of the update; of the norm and the update. The program's next unit in the file is read ahead.
  void fetch(const Operation& operation, bool first_micro_batch);
  void fetch_for_update(const Operation& operation, const ProgramCursor& cursor);
  void fetch_gradient(const Operation& operation, const ProgramCursor& cursor);
  void evict(const Operation& operation, bool last_micro_batch);
  // A unit whose gradients are in the file, in the slot that its reduction writes into.
  void hold_gradient(std::uint64_t unit);
  void used_parameters(std::uint64_t unit);
  void gather_buffer(const ArenaPlace& input, const ArenaPlace& output, DType dtype, const BufferLayout& buffer);
  void prepare_gradients(std::uint64_t unit);
  UnitViews make_views(std::uint64_t unit, bool with_gradients);
  std::uint64_t step_of_next_compute() const;
  void forget_step();
  void check_gradients(std::span<const ConstElements> gradients) const;

  std::vector<StateArray> state_arrays(StateKind kind, std::uint64_t unit, std::size_t buffer) const;
  template <typename Act>
  void for_each_state(Act&& act) const;
  Range visited_range(const TensorPlace& place) const;
  void store_state(const StateArray& array, Range asked, const ConstElements& values);
  // The address of an element of the flat buffer, wherever the array is, and how many of `count` from it on lie together
  // there, until the next call. close_states() ends such calls.
  std::byte* state_at(const StateArray& array, std::uint64_t element, Access access);
  std::uint64_t together(const StateArray& array, std::uint64_t element, std::uint64_t count) const;
  void close_states();
  HostBuffer values_buffer();
  void require_whole_state(const char* call) const;

  void sum_norms();
  void agree();
  void commit(const NormSums& norms, bool finite);
  StepReport roll_forward();
  void update(std::uint64_t unit);
  void update_blocks(std::uint64_t unit);
  // `block`: of the states, where they are in the file.
  void update_tensor(std::uint64_t unit, const TensorPlace& tensor, Range held, const BlockPlace* block);

  const Kernels& kernels() const { return *options_.kernels; }
  std::uint64_t own_shard() const { return place_.shard; }

  Device& device_;
  const Catalog& catalog_;
  const StepPlan& plan_;
  Communicators communicators_;
  ZeroOptions options_;
  RankPlace place_;
  OperationEvents events_;
  PlanMemory memory_;
  ParameterIndex index_;
  GradientReducer reducer_;
  TrafficMeter meter_;
  LossScaler scaler_;

  ProgramCursor cursor_;
  std::optional<ProgramKind> program_;  // that is running
  std::vector<bool> prepared_;          // units whose contributions are zeroed, in this micro-batch
  std::optional<Operation> entered_;    // the compute operation that the client is inside of
  std::uint64_t micro_batches_ = 0;     // of this step, begun
  bool last_done_ = false;
  NormSums partials_{};  // of this shard
  std::uint64_t steps_applied_ = 0;
  bool half_loaded_ = false;  // load_state() has failed
  std::optional<Commit> commit_;
  // What is in a file; null where it is not.
  std::unique_ptr<OffloadFile> file_;
  std::unique_ptr<OffloadedStates> states_;
  std::unique_ptr<PassingUnits> passing_parameters_;
  std::unique_ptr<PassingUnits> passing_gradients_;
  // Of the micro-batch, among all that were begun: its gradients are written to the file with it.
  std::uint64_t gradient_number_ = 0;
  std::vector<TensorView> parameter_views_;
  std::vector<TensorView> gradient_views_;
};

}  // namespace shardplan
