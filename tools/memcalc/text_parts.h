// What several commands' text has.
#pragma once

#include <cstdint>
#include <string>

#include "tools/memcalc/options.h"
#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

// Escape codes, or nothing where stdout is no terminal.
struct Style {
  const char* bold = "";
  const char* dim = "";
  const char* good = "";
  const char* bad = "";
  const char* off = "";
};
Style style_for(bool colour);

std::string plural(std::uint64_t count, const char* word);  // "1 GPU", "1,024 GPUs"

// What one micro-batch is: "2 x 4,096 tokens", "8 images", "8 images with 589 tokens of text each", "1,000 points".
std::string samples_text(const Planned& planned, const ClientSetup& client);

// Which model and which set-up: two lines.
std::string heading(const PlanOptions& options, const Planned& planned, const Style& style);

}  // namespace shardplan::memcalc
