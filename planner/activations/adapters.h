// Linear modules whose weights are quantised, or have a low-rank adapter beside them (planner/lora.h).
#pragma once

#include "planner/activations/tape.h"
#include "planner/activations/unit_view.h"

namespace shardplan::autograd {

// y = x W^T + b without the adapter. A weight in 4 bits is written out in x's dtype for the product and again for its
// backward, which needs no input (bitsandbytes autograd/_functions.py, MatMul4Bit; 0.49 and later multiply small batches
// without that). One in 8 bits is multiplied in 8 bits; the input is kept, and the backward writes the weight out
// (MatMul8bitLt). No outliers are counted.
struct QuantisedOptions {
  bool keeps_input =
      false;  // in 4 bits, before bitsandbytes 0.43.2: the input is kept, though nothing reads it (pull request 1270)
};
Value base_linear(const Value& x, const Parameters& layer, const QuantisedOptions& options = {});

// result + B(A(dropout(x))) x scale as peft computes it (tuners/lora/layer.py and bnb.py, Linear.forward): in the
// adapter's dtype, and cast back to the result's.
Value peft_adapted(const Value& x, const Value& result, const Parameters& layer);

// The same where the adapter has the model's dtype and nothing is cast (litgpt/lora.py, torchtune's modules/peft/lora.py).
Value plain_adapted(const Value& x, const Value& result, const Parameters& layer);

}  // namespace shardplan::autograd
