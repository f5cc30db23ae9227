// What a model is given to read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/families/model.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

enum class Samples : std::uint8_t { texts, images, images_with_texts, points };

Samples samples_of(const Model& model);

// Notes of flags that say nothing of such samples.
void add_notes_of_samples(const PlanOptions& options, Samples samples, const std::string& family,
                          std::vector<std::string>& notes);

}  // namespace shardplan::memcalc
