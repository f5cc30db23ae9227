// Any bytes as accelerate's YAML: a set-up, or an Error. Nothing beside it is opened.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "planner/formats/accelerate_config.h"

namespace shardplan {

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer calls it by this name
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // A file of DeepSpeed's is one that another fuzzer reads; here it would be any path of this machine.
  if (text.find("config_file") != std::string_view::npos) return 0;
  try {
    const TrainingConfig config = accelerate_config(text, "fuzz");
    SHARDPLAN_CHECK(config.engine && config.stage && config.precision, "an answer without engine, stage or precision");
    SHARDPLAN_CHECK(config.stage->value >= 0 && config.stage->value <= 3, "a stage that does not exist");
  } catch (const Error&) {  // the answer to bad input
  }
  return 0;
}

}  // namespace shardplan
