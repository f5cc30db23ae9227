// Any bytes as a safetensors file: tensors that fill its data exactly, or an Error.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "planner/formats/safetensors.h"
#include "planner/formats/tensor_units.h"

namespace shardplan {
namespace {

void check_header(const SafetensorsHeader& header, std::uint64_t file_bytes) {
  std::uint64_t reached = 0;
  for (const SafetensorsTensor& tensor : header.tensors) {
    SHARDPLAN_CHECK(tensor.begin == reached && tensor.end >= tensor.begin, "a hole or an overlap");
    SHARDPLAN_CHECK(bytes_for(tensor.dtype, elements(tensor.shape)) == Bytes{tensor.end - tensor.begin},
                    "a wrong size");
    reached = tensor.end;
  }
  SHARDPLAN_CHECK(header.data_begin + reached == file_bytes, "data that is no tensor's");
}

// Every tensor is in the catalog once.
void check_units(const SafetensorsHeader& header) {
  std::vector<Tensor> tensors;
  std::uint64_t total = 0;
  for (const SafetensorsTensor& stored : header.tensors) {
    Tensor tensor;
    tensor.name = stored.name;
    tensor.shape = stored.shape;
    tensors.push_back(tensor);
    total = checked_add(total, elements(stored.shape));
  }
  const std::size_t count = tensors.size();
  const Catalog catalog = catalog_from_tensors("fuzz", std::move(tensors));
  SHARDPLAN_CHECK(tensor_count(catalog) == count, "a tensor lost or twice");
  SHARDPLAN_CHECK(parameter_elements(catalog) == total, "elements lost or twice");
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const SafetensorsHeader header =
        parse_safetensors_header({reinterpret_cast<const char*>(data), size}, size, "fuzz");
    check_header(header, size);
    check_units(header);
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
