// Writes safetensors files as the reference writer does: tensors by descending alignment of their dtype, then by name;
// header padded to 8 bytes; one file or shards with an index. The data is a hole, so that large models cost no disk.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "planner/catalog.h"

namespace shardplan::test_support {

struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
};

// The format's own order of its dtypes.
inline constexpr std::array<std::pair<DType, const char*>, 22> kStoredTypes{{
    {DType::boolean, "BOOL"},
    {DType::f4, "F4"},
    {DType::f6_e2m3, "F6_E2M3"},
    {DType::f6_e3m2, "F6_E3M2"},
    {DType::u8, "U8"},
    {DType::i8, "I8"},
    {DType::f8_e5m2, "F8_E5M2"},
    {DType::f8_e4m3, "F8_E4M3"},
    {DType::f8_e8m0, "F8_E8M0"},
    {DType::f8_e4m3fnuz, "F8_E4M3FNUZ"},
    {DType::f8_e5m2fnuz, "F8_E5M2FNUZ"},
    {DType::i16, "I16"},
    {DType::u16, "U16"},
    {DType::f16, "F16"},
    {DType::bf16, "BF16"},
    {DType::i32, "I32"},
    {DType::u32, "U32"},
    {DType::f32, "F32"},
    {DType::c64, "C64"},
    {DType::f64, "F64"},
    {DType::i64, "I64"},
    {DType::u64, "U64"},
}};

inline std::size_t stored_type(DType dtype) {
  const auto row =
      std::find_if(kStoredTypes.begin(), kStoredTypes.end(), [&](const auto& r) { return r.first == dtype; });
  return static_cast<std::size_t>(row - kStoredTypes.begin());
}

inline std::string length_prefix(std::uint64_t length) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xFF);
  return bytes;
}

struct SafetensorsImage {
  std::string beginning;         // length and header
  std::uint64_t file_bytes = 0;  // with the data
};

inline SafetensorsImage safetensors_image(std::vector<StoredTensor> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return std::pair(-static_cast<int>(stored_type(a.dtype)), a.name) <
           std::pair(-static_cast<int>(stored_type(b.dtype)), b.name);
  });
  std::string header = R"({"__metadata__":{"format":"pt"})";
  std::uint64_t offset = 0;
  for (const StoredTensor& tensor : tensors) {
    const std::uint64_t end = offset + bytes_for(tensor.dtype, elements(tensor.shape)).count();
    header += fmt::format(R"(,"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", tensor.name,
                          kStoredTypes.at(stored_type(tensor.dtype)).second, fmt::join(tensor.shape, ","), offset, end);
    offset = end;
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return {length_prefix(header.size()) + header, 8 + header.size() + offset};
}

inline void write_safetensors(const std::string& path, const std::vector<StoredTensor>& tensors) {
  const SafetensorsImage image = safetensors_image(tensors);
  std::ofstream(path, std::ios::binary) << image.beginning;
  std::filesystem::resize_file(path, image.file_bytes);
}

// model-00001-of-0000N.safetensors with `per_shard` tensors each, and model.safetensors.index.json.
inline void write_sharded_safetensors(const std::string& folder, const std::vector<StoredTensor>& tensors,
                                      std::size_t per_shard) {
  const std::size_t shards = (tensors.size() + per_shard - 1) / per_shard;
  std::string weight_map;
  std::uint64_t bytes = 0;
  for (std::size_t shard = 0; shard < shards; ++shard) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
    const auto begin = tensors.begin() + static_cast<std::ptrdiff_t>(shard * per_shard);
    const auto end = tensors.begin() + static_cast<std::ptrdiff_t>(std::min((shard + 1) * per_shard, tensors.size()));
    write_safetensors((std::filesystem::path(folder) / name).string(), {begin, end});
    for (auto tensor = begin; tensor != end; ++tensor) {
      weight_map += fmt::format(R"({}"{}": "{}")", weight_map.empty() ? "" : ", ", tensor->name, name);
      bytes += bytes_for(tensor->dtype, elements(tensor->shape)).count();
    }
  }
  std::ofstream(std::filesystem::path(folder) / "model.safetensors.index.json")
      << fmt::format(R"({{"metadata": {{"total_size": {}}}, "weight_map": {{{}}}}})", bytes, weight_map);
}

// What a save of this model stores: every tensor that owns elements, in its own dtype or in this one.
inline std::vector<StoredTensor> stored_tensors(const Catalog& catalog, DType dtype) {
  std::vector<StoredTensor> stored;
  for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
    if (tensor.tied_to.empty()) stored.push_back({name, tensor.dtype.value_or(dtype), tensor.shape});
  });
  return stored;
}

}  // namespace shardplan::test_support
