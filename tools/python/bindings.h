// The parts of the extension module `_shardplan`. What Python sees of them is in shardplan/_shardplan.pyi.
#pragma once

#include <nanobind/nanobind.h>

namespace shardplan::python {

namespace nb = nanobind;

// C++ exceptions become those of shardplan/errors.py, with their fields.
void bind_errors(nb::module_& module);
// plan, explain, simulate, models, gpus: the JSON that memcalc prints (docs/memcalc-json.md).
void bind_planning(nb::module_& module);
// Communicator, and what makes one.
void bind_communicators(nb::module_& module);
// Engine: a ZeroOptimizer on the CPU, with addresses for views. The rest of ZeroAdamW is in Python.
void bind_engine(nb::module_& module);
// write_checkpoint: what another program has trained as a checkpoint.
void bind_checkpoint_writer(nb::module_& module);

}  // namespace shardplan::python
