// One unit of a model as a forward finds it: modules by name, with the tensors that this rank holds of them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "planner/activations/tape.h"
#include "planner/catalog.h"
#include "planner/families/module.h"

namespace shardplan::autograd {

// A low-rank adapter beside a linear module (planner/lora.h): A [r, in], B [out, r]. Undefined where there is none.
struct Adapter {
  Value a;
  Value b;
  double dropout = 0;  // of its input
};

// The parameters of one module. Undefined where the module has none of that name.
struct Parameters {
  const Module* module = nullptr;
  Value weight;
  Value bias;
  Adapter adapter{};
  std::uint64_t output = 0;  // features that a linear module puts out
};

class UnitView {
 public:
  // Unit `index` of `run`, which is the rank's, of its catalog; `modules` are those of the same unit of the model.
  // `dtype`: of parameters that the model does not fix. `adapter_dropout`: of all adapters.
  UnitView(Tape& tape, const Modules& modules, const UnitRun& run, std::uint64_t index, DType dtype,
           double adapter_dropout = 0);

  std::uint64_t number() const { return run_.first_number + index_; }  // of a block in its stack
  bool has(std::string_view module) const { return find(module) != nullptr; }
  // A CHECK fails where there is no such module: has() asks first.
  Parameters operator[](std::string_view module) const;
  const Module& module(std::string_view name) const;
  // The first module of a kind, of those below `name`: its own name differs between families. Null where there is none.
  const Module* first_of(ModuleKind kind, std::string_view name = {}) const;
  // Linear modules of one input whose weights a program keeps in one matrix, one below the other: `name` below the unit's.
  Parameters joined(std::string_view name, std::span<const Parameters> parts) const;
  Adapter joined_adapter(std::string_view name, std::span<const Parameters> parts) const;
  // Says that x passes a module that has no parameters; nothing where the unit has no such module (Tape::passes).
  void passes(std::string_view module, const Value& x) const;
  Value tensor(std::string_view name) const;  // by its own name below the unit's; undefined where there is none

 private:
  const Module* find(std::string_view name) const;

  Tape& tape_;
  const Modules& modules_;
  const UnitRun& run_;
  std::uint64_t index_;
  DType dtype_;
  double adapter_dropout_;
};

}  // namespace shardplan::autograd
