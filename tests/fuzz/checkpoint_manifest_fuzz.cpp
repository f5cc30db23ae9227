// Any bytes as a checkpoint's manifest, with the digest that they should have: a manifest that can be trusted, or a
// CheckpointError.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/error.h"
#include "shard/checkpoint/manifest.h"

namespace shardplan {
namespace {

void check_manifest(const Manifest& manifest) {
  const std::vector<TensorEntry> table = tensor_table(manifest.catalog);
  for (const CheckpointFile& file : manifest.files) {
    SHARDPLAN_CHECK(file.name.find('/') == std::string::npos && file.name.front() != '.', "a path");
    std::uint64_t reached = file.data_begin;
    std::size_t blocks = 0;
    for (const Slice& slice : file.slices) {
      SHARDPLAN_CHECK(slice.first + slice.elements <= table.at(slice.tensor).elements, "elements beyond the tensor");
      SHARDPLAN_CHECK(slice.begin == reached && slice.first_block == blocks, "slices that do not follow each other");
      const std::uint64_t bytes = bytes_for(file.dtype, slice.elements).count();
      reached += bytes;
      blocks += block_count(bytes, manifest.block_bytes);
    }
    SHARDPLAN_CHECK(reached == file.bytes && blocks == file.blocks.size(), "a file that is not filled");
  }
  const Manifest again = parse_manifest(manifest_text(manifest), "again");
  SHARDPLAN_CHECK(again.files == manifest.files && again.catalog == manifest.catalog &&
                      again.saved_by == manifest.saved_by && again.client == manifest.client,
                  "another manifest when it is written and read");
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string text(reinterpret_cast<const char*>(data), size);
  text += hex(digest_of(std::as_bytes(std::span(text)))) + "\"}\n";
  try {
    check_manifest(parse_manifest(text, "fuzz"));
  } catch (const CheckpointError&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
