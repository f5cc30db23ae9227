// A ZeroOptimizer on the CPU, for a client that keeps its tensors in memory of this process: torch. Tensors are named
// by address here, and calls need no interpreter, so that a rank which waits for others holds no lock of Python's.
//
// Threads: one rank's.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "planner/step_plan.h"
#include "runtime/cpu_device.h"
#include "runtime/files/posix_files.h"
#include "shard/checkpoint/background_save.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/zero_optimizer.h"

namespace shardplan::python {

// A client's tensor: contiguous, fp32, bf16 or fp16.
struct ClientTensor {
  std::uintptr_t address = 0;
  DType dtype = DType::f32;
};

// By the tensor's whole name. What stands in a state besides a tensor's name is its kind.
using ClientTensors = std::map<std::string, ClientTensor, std::less<>>;
// Of each tensor: an index into ZeroOptions::groups.
using ClientGroups = std::map<std::string, std::uint32_t, std::less<>>;

struct UnitNamesOfTensors {
  std::string name;
  std::vector<std::string> tensors;  // whole names in catalog order
};

class Engine {
 public:
  // `tensors` is a tensor list (planner/formats/tensor_list.h), `groups` says of which group each is. `initial` has the values of each tensor that owns
  // elements, takes the place of options.initial_values and is read here only. Collective; the communicator must
  // outlive the engine.
  Engine(const std::string& tensors, const ClientGroups& groups, const Setup& setup, ZeroOptions options,
         Communicator& communicator, const ClientTensors& initial);

  const std::vector<UnitNamesOfTensors>& units() const { return units_; }
  const StepPlan& plan() const { return plan_; }
  bool shards_parameters() const { return parameters_sharded(plan_); }
  ZeroOptimizer& optimizer() { return optimizer_; }

  // Addresses of a unit's parameters that stay where they are; only where parameters are not sharded.
  std::vector<std::uintptr_t> resident_parameters(std::uint64_t unit);

  void begin(bool evaluate);
  std::vector<std::uintptr_t> enter(std::uint64_t unit, Pass pass);
  void leave(std::uint64_t unit) { optimizer_.leave(unit); }
  // Where units are not gathered: all of their forwards, which only mark the place in the program.
  void pass_forward();
  // The whole gradient of one tensor of the unit whose backward is entered: rounded to the wire dtype.
  void contribute(std::size_t tensor, const ClientTensor& gradient);
  StepReport step() { return optimizer_.step(); }

  // Collective: every rank gets whole tensors in the client's dtype. Names that are not in `into` are left out.
  void read_state(StateKind kind, const ClientTensors& into);
  // No collective. Each kind has all tensors that own elements.
  void write_state(const StepState& step_state, const std::map<StateKind, ClientTensors>& from);

  // Checkpoints (shard/checkpoint/checkpoint.h). Collective.
  std::string save(const std::string& folder, const SaveOptions& options);
  // While training goes on. finish_save() has the name once it is published, nothing where it is still being written.
  void save_in_background(const std::string& folder, const SaveOptions& options);
  std::optional<std::string> finish_save(bool wait);
  LoadReport load(const std::string& folder);

 private:
  Catalog catalog_;
  StepPlan plan_;
  std::vector<UnitNamesOfTensors> units_;
  CpuDevice device_;
  PosixFiles files_;
  Communicator& communicator_;
  ZeroOptimizer optimizer_;
  std::span<const TensorView> gradients_;       // of the unit that is entered
  std::uint64_t begun_ = 0;                     // micro-batches since the last step
  std::unique_ptr<BackgroundSave> background_;  // since the first one; the last member: it uses the others
};

}  // namespace shardplan::python
