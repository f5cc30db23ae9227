// One unit of a model as a forward finds it: modules by name, with the tensors that this rank holds of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/activations/tape.h"
#include "planner/catalog.h"
#include "planner/families/module.h"

namespace shardplan::autograd {

// The parameters of one module. Undefined where the module has none of that name.
struct Parameters {
  const Module* module = nullptr;
  Value weight;
  Value bias;
};

class UnitView {
 public:
  // Unit `index` of `run`, which is the rank's, of its catalog; `modules` are those of the same unit of the model.
  // `dtype`: of parameters that the model does not fix.
  UnitView(Tape& tape, const Modules& modules, const UnitRun& run, std::uint64_t index, DType dtype);

  bool has(std::string_view module) const { return find(module) != nullptr; }
  // A CHECK fails where there is no such module: has() asks first.
  Parameters operator[](std::string_view module) const;
  const Module& module(std::string_view name) const;
  // The one module of a kind. Its name differs between families.
  const Module* first_of(ModuleKind kind) const;
  Value tensor(std::string_view name) const;  // by its own name below the unit's; undefined where there is none

 private:
  const Module* find(std::string_view name) const;

  Tape& tape_;
  const Modules& modules_;
  const UnitRun& run_;
  std::uint64_t index_;
  DType dtype_;
};

}  // namespace shardplan::autograd
