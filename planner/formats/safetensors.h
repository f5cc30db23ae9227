// safetensors files: their headers alone, never the data.
//
// A file is the header's length (8 bytes, little-endian), the header (JSON), the data. Everything that the format says
// about a header is checked, as its reference reader does, against the size of the file; what is wrong is a ConfigError
// that names the file and the tensor. (huggingface/safetensors, safetensors/src/tensor.rs.)
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "planner/catalog.h"
#include "planner/families/model.h"

namespace shardplan {

struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  // Bytes of the file's data, from data_begin.
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  bool operator==(const SafetensorsTensor&) const = default;
};

struct SafetensorsHeader {
  std::uint64_t data_begin = 0;            // in the file
  std::vector<SafetensorsTensor> tensors;  // in the order of their data
  bool operator==(const SafetensorsHeader&) const = default;
};

inline constexpr std::uint64_t kLargestSafetensorsHeader = 100'000'000;  // bytes

// `beginning` is at least the length and the header, or the whole file where that is shorter. Throws ConfigError.
SafetensorsHeader parse_safetensors_header(std::string_view beginning, std::uint64_t file_bytes,
                                           const std::string& source);
// Reads the header alone. Throws ConfigError and IoError.
SafetensorsHeader read_safetensors_header(const std::string& path);

// The spelling of the format: "BF16". Nothing for what the format does not have.
std::optional<DType> parse_safetensors_dtype(std::string_view text);
std::optional<std::string_view> safetensors_dtype_name(DType dtype);

// What stands before the data: length and header, padded with spaces to a multiple of 8 bytes as the reference writer
// does. `begin` and `end` are set here: the tensors' data follow each other in the order given. `metadata` are texts.
// Throws ConfigError, with the tensor's name, for a dtype that the format does not have and bits that fill no whole byte.
std::string safetensors_beginning(std::span<SafetensorsTensor> tensors,
                                  std::span<const std::pair<std::string, std::string>> metadata);

// A tensor in one of a model's files.
struct StoredTensorPlace {
  std::string path;
  std::uint64_t data_begin = 0;  // of the file; SafetensorsTensor::begin counts from there
  SafetensorsTensor tensor;
};
// All tensors of what model_from_safetensors() reads. Throws ConfigError and IoError.
std::vector<StoredTensorPlace> tensors_in_safetensors(const std::string& path);

// The model in a .safetensors file, in the files that an index (*.safetensors.index.json) names, or in those of a
// folder: the index's if it has one, else all.
//
// Units come from the names (planner/formats/tensor_units.h); in a unit, tensors are in order of name. Floating-point
// tensors are trainable and leave their dtype to the policy; others (quantised, integer) keep it and are frozen.
// Buffers are told from parameters by their names (planner/formats/buffers.h). Notes say so, and that a tied head is not
// in such files. Throws ConfigError and IoError.
Model model_from_safetensors(const std::string& path);

}  // namespace shardplan
