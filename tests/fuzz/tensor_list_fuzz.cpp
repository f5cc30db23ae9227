// Any bytes as a tensor list: a catalog that holds together, or an Error.
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "base/error.h"
#include "planner/formats/tensor_list.h"

namespace shardplan {
namespace {

// Small: every tensor of a list has bytes of its own in the input.
void check(const Catalog& catalog) {
  std::set<std::string> names;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    SHARDPLAN_CHECK(!name.empty() && names.insert(name).second, "a name twice");
    SHARDPLAN_CHECK(!tensor.trainable || !tensor.dtype || is_trainable_dtype(*tensor.dtype), "gradients of integers");
    SHARDPLAN_CHECK(tensor.tied_to.empty() || names.contains(tensor.tied_to), "tied to a later tensor");
  });
  SHARDPLAN_CHECK(tensor_count(catalog) == names.size() && !names.empty(), "a wrong count");
  SHARDPLAN_CHECK(trainable_elements(catalog) <= parameter_elements(catalog), "more trainable than there are");
  unit_ties(catalog);
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(model_from_tensor_list({reinterpret_cast<const char*>(data), size}, "fuzz").catalog);
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
