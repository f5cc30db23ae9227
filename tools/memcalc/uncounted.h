// Kinds of ranks whose activations are not counted, while those of others are: what is said of them.
#pragma once

#include <string>

#include "tools/memcalc/planning.h"

namespace shardplan::memcalc {

// A note for each reason; where it is not the same of all kinds, with which.
void add_uncounted_notes(Planned& planned);

// Which kinds of ranks are left out of what is counted, and why, where others are counted: they may need more than the worst of
// those. Empty where all or none are.
std::string left_out(const Planned& planned);

}  // namespace shardplan::memcalc
