// What a rank keeps beside model states and the activations of its tapes, thing by thing.
#pragma once

#include <string>

#include "base/bytes.h"
#include "planner/activations/tape.h"

namespace shardplan {

struct ClientTerm {
  std::string name;
  Bytes bytes;
  bool after_step = true;  // is there between steps
  bool at_peak = true;     // is there at the worst moment of a step
  std::string source;
  // The line of a report that it is in; workspace: tables, batches and what libraries take.
  autograd::Purpose purpose = autograd::Purpose::workspace;
};

}  // namespace shardplan
