// A model that is saved and read back from the headers of its safetensors files is the same model.
#include <gtest/gtest.h>

#include "planner/formats/presets.h"
#include "planner/formats/read_model.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/unit_lines.h"

namespace shardplan {
namespace {

using test_support::stored_tensors;
using test_support::StoredTensor;
using test_support::TemporaryFolder;
using test_support::unit_lines;
using test_support::write_sharded_safetensors;

std::vector<std::string> names_of(const std::vector<Tensor>& tensors) {
  std::vector<std::string> names;
  for (const Tensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  return names;
}

TEST(SavedModels, EveryPresetIsTheSameFromItsSafetensors) {
  for (const Preset& preset : presets()) {
    SCOPED_TRACE(preset.name);
    const Catalog catalog = preset_model(preset.name).value().catalog;
    std::vector<StoredTensor> stored = stored_tensors(catalog, DType::bf16);
    for (const Tensor& buffer : catalog.buffers) stored.push_back({buffer.name, DType::f32, buffer.shape});
    const TemporaryFolder folder;
    write_sharded_safetensors(folder.path(), stored, 1000);
    const Catalog saved = read_model(folder.path()).catalog;
    EXPECT_EQ(parameter_elements(saved), preset.parameters);
    EXPECT_EQ(names_of(saved.buffers), names_of(catalog.buffers));
    const auto ours = unit_lines(catalog);
    const auto theirs = unit_lines(saved);
    ASSERT_EQ(ours.size(), theirs.size());
    for (std::size_t i = 0; i < ours.size(); ++i) ASSERT_EQ(ours[i], theirs[i]);
  }
}

}  // namespace
}  // namespace shardplan
