// Catalogs to compare where one was read from a file that has no tied tensors.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string>
#include <vector>

#include "planner/catalog.h"

namespace shardplan::test_support {

// "unit: name shape; name shape" for each unit in order of use, without tied tensors, in order of name.
inline std::vector<std::string> unit_lines(const Catalog& catalog) {
  std::vector<std::string> lines;
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      std::vector<std::string> tensors;
      for (const Tensor& tensor : run.tensors) {
        if (!tensor.tied_to.empty()) continue;
        tensors.push_back(fmt::format("{} {}", tensor_name(run, i, tensor), fmt::join(tensor.shape, ",")));
      }
      std::sort(tensors.begin(), tensors.end());
      if (!tensors.empty()) lines.push_back(fmt::format("{}: {}", unit_name(run, i), fmt::join(tensors, "; ")));
    }
  }
  return lines;
}

}  // namespace shardplan::test_support
