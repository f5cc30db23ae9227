// What the files of operations have in common: how an output lies, and the usual formulas of gradients.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "planner/activations/tape.h"

namespace shardplan::autograd {

struct Meta {
  Shape shape;
  DType dtype = DType::f32;
  bool wanted = false;  // it needs a gradient
};

Meta meta_of(const Value& value);

// The gradient of an operand, element by element from that of the output: it lies as that does.
Value fresh(Tape& tape, std::string_view operation, const Meta& meta, Layout layout = Layout::in_order);

// Of that value alone.
std::vector<Value> one(Value value);

// Once all gradients of a node are there, each is summed to the shape of an operand that was broadcast, and cast to its
// dtype (torch/csrc/autograd/engine.cpp, validate_outputs).
void fit(Tape& tape, std::vector<Value>& gradients, std::span<const Meta> operands);

// Every input that needs a gradient gets a tensor of its own. Formulas are evaluated in the order of the names that
// derivatives.yaml gives the inputs: `order` lists them.
Formula fresh_gradients(std::string_view operation, std::span<const Value> inputs, std::vector<std::size_t> order);
Formula fresh_gradients(std::string_view operation, std::span<const Value> inputs);

// The gradient itself goes on, under the shape that the input has.
Formula same_gradient(const Value& input);

// One of its own after `temporaries` more tensors of its shape, all of which live until the formula has been evaluated.
Formula gradient_after(std::string_view operation, const Value& input, int temporaries);

// Records a node with fresh gradients; `simple`: of one input.
Value record(std::string_view operation, std::span<const Value> inputs, Value output, std::vector<Value> saved);
Value simple(std::string_view operation, const Value& x, Value output, std::vector<Value> saved = {});

// As at::empty_like and elementwise operations lay their output: like the input, without its gaps.
Value like(std::string_view operation, const Value& x);

// Under autocast: as operations of the list lower_precision_fp take it, and as those of fp32 do.
Value lowered(const Value& x);
Value widened(const Value& x);

}  // namespace shardplan::autograd
