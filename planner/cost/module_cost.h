// The roofline of one module. Used by compute.cpp, which adds modules up; see compute.h for the model as a whole.
#pragma once

#include "planner/cost/compute.h"

namespace shardplan {

class ModuleCost {
 public:
  // Throws ConfigError where the cluster's GPU does not say how fast it is.
  ModuleCost(const Architecture& architecture, const Work& work, const Cluster& cluster);

  // `rows`: what passes it. `trained`: its weights need a gradient. That its inputs need one is taken for granted.
  PassSeconds seconds(const Module& module, const ModuleRows& rows, bool trained) const;
  // What a unit does besides its modules: adds to the residual stream, moves tokens to experts and back. `rows`: of each module, or
  // none that are known.
  PassSeconds between_modules(const Modules& modules, const std::vector<ModuleRows>& rows, bool is_block) const;
  // 2 flops per weight and token.
  double plain(double weights) const;

 private:
  struct Product;
  struct Flow;

  Flow flow_of(const ModuleRows& rows) const;

  double kernel(double flops, double rate, double bytes, double kernels = 1) const;
  PassSeconds passes(double elements, double forward, double backward, double kernels = 1) const;
  PassSeconds product(const Product& product, bool trained) const;
  PassSeconds linear(const Module& module, double rows, bool trained) const;
  PassSeconds embedding(const Module& module, double tokens, bool trained) const;
  PassSeconds attention(const AttentionSizes& sizes, const Flow& flow) const;
  PassSeconds scan(const Module& module, double tokens) const;
  PassSeconds loss(double tokens) const;
  bool is_vocabulary_head(const Module& module) const;

  const Architecture& architecture_;
  const Work& work_;
  const Efficiency& efficiency_;
  double width_;           // bytes of an activation
  double gradient_bytes_;  // that a weight's gradient moves
  double memory_rate_;
  double product_rate_;  // of matrix products inside blocks
  double wide_rate_;     // of attention and heads, which stay in 16 bit where products are in 8
  double vector_rate_;   // of arithmetic outside the matrix units
};

}  // namespace shardplan
