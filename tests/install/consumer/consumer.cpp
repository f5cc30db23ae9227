// A program outside the project that lays out four blocks over eight shards.
#include <iostream>

#include "base/bytes.h"
#include "planner/catalog.h"
#include "planner/layout.h"

int main() {
  shardplan::CatalogBuilder builder("example", "tensors");
  builder.add_run("block", 0, 4, {shardplan::Tensor{.name = "weight", .shape = {1024, 1024}}});
  const shardplan::Catalog catalog = builder.finish();
  const shardplan::Layout layout = shardplan::make_layout(catalog, 8, 1);
  const std::uint64_t shard = layout.runs.at(0).unit.buffers.at(0).shard_elements;
  std::cout << shardplan::in_gib(2 * shardplan::Bytes{shard}) << " in each shard\n";
  return shard == 1024 * 1024 / 8 ? 0 : 1;
}
