#include "tools/python/bindings.h"
#include "tools/version.h"

NB_MODULE(_shardplan, module) {
  // Torch frees tensors, which keep the memory that they view, after the interpreter has looked for leaks.
  nanobind::set_leak_warnings(false);
  module.attr("__version__") = shardplan::kVersion;
  shardplan::python::bind_errors(module);
  shardplan::python::bind_planning(module);
  shardplan::python::bind_communicators(module);
  shardplan::python::bind_engine(module);
  shardplan::python::bind_checkpoint_writer(module);
}
