// Rows that programs other than Megatron-LM published, as set-ups: LitGPT's tables, torchtune's, torchtitan's, and peft's method
// comparison.
#pragma once

#include <boost/json/fwd.hpp>
#include <string>

#include "base/bytes.h"
#include "base/error.h"
#include "planner/families/model.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// Why a row is skipped.
class NotPredicted : public Error {
 public:
  using Error::Error;
};

struct ProgramRun {
  PlanOptions options;
  Model model;
  std::string field;    // "peak_allocated" or "peak_reserved"
  double measured = 0;  // bytes
  Bytes beside;         // what the program keeps on the GPU besides the model and its training
};

// Of a row of one of them; `framework` is the row's. Throws NotPredicted and ConfigError.
ProgramRun program_run(const boost::json::object& row);

// Members of a row; empty and `absent` where there is none.
std::string text_of(const boost::json::object& row, std::string_view key);
std::uint64_t count_of(const boost::json::object& row, std::string_view key, std::uint64_t absent);

}  // namespace shardplan::memcalc
