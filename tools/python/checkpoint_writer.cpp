// Checkpoints of values that another program has trained: shardplan/import_universal.py.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "planner/formats/tensor_list.h"
#include "runtime/files/posix_files.h"
#include "shard/checkpoint/folder.h"
#include "shard/checkpoint/state_writer.h"
#include "tools/python/bindings.h"

namespace shardplan::python {
namespace {

using Slices = std::vector<std::tuple<std::string, int, std::string>>;  // tensor, kind of state, dtype

std::vector<AnnouncedSlice> announced(const std::vector<TensorEntry>& table, const Slices& slices) {
  std::map<std::string_view, std::uint64_t> places;
  for (std::uint64_t i = 0; i < table.size(); ++i) places.emplace(table[i].name, i);
  std::vector<AnnouncedSlice> result;
  for (const auto& [name, kind, dtype_text] : slices) {
    const auto place = places.find(name);
    const auto dtype = parse_dtype(dtype_text);
    SHARDPLAN_CHECK(place != places.end() && kind >= 0 && kind < static_cast<int>(kStateKinds), "no such state");
    if (!dtype || (*dtype != DType::f32 && *dtype != DType::bf16 && *dtype != DType::f16)) {
      throw ConfigError(name, "", "is in " + dtype_text + ": expected float32, bfloat16 or float16");
    }
    if (table[place->second].elements == 0) continue;
    result.push_back({place->second, static_cast<StateKind>(kind), 0, table[place->second].elements, *dtype});
  }
  return result;
}

// A new checkpoint in `folder`, and its name: whole tensors of the list `tensors` (planner/formats/tensor_list.h), whose
// values values(tensor, kind) gives in the order of `slices`, as the address of a contiguous array that stays until the
// next call.
std::string write_checkpoint(const std::string& folder, const std::string& tensors, std::uint64_t steps_applied,
                             double loss_scale, const Slices& slices, const nb::callable& values) {
  Manifest manifest;
  manifest.catalog = model_from_tensor_list(tensors, "tensors").catalog;
  manifest.step.steps_applied = steps_applied;
  manifest.step.loss_scale = loss_scale;
  const std::vector<TensorEntry> table = tensor_table(manifest.catalog);
  const std::vector<AnnouncedSlice> all = announced(table, slices);
  PosixFiles files;
  const OpenCheckpoint open = begin_checkpoint(files, folder, steps_applied);
  StateWriter writer(files, table, all, {.folder = open.working_folder(), .prefix = "imported"});
  for (const AnnouncedSlice& slice : all) {
    const std::string& name = table[slice.tensor].name;
    const auto address = nb::cast<std::uintptr_t>(values(name, static_cast<int>(slice.kind)));
    const nb::gil_scoped_release released;
    writer.append({name, slice.tensor, slice.kind, 0},
                  ConstElements(slice.dtype, reinterpret_cast<const std::byte*>(address), slice.elements));
  }
  manifest.files = writer.finish();
  const std::string text = manifest_text(manifest);
  parse_manifest(text, folder);  // what a load would refuse is not published
  publish_checkpoint(files, open, text);
  return open.name;
}

}  // namespace

void bind_checkpoint_writer(nb::module_& module) {
  module.def("write_checkpoint", write_checkpoint, nb::arg("folder"), nb::arg("tensors"), nb::arg("steps_applied"),
             nb::arg("loss_scale"), nb::arg("slices"), nb::arg("values"));
}

}  // namespace shardplan::python
