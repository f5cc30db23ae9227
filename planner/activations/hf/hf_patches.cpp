#include "planner/activations/hf/hf_patches.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "planner/activations/hf/hf_layers.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {

Value patches(ForwardContext& context, const Parameters& projection, std::uint64_t count, std::uint64_t images) {
  const ClientSetup& client = context.client;
  const std::uint64_t side = projection.weight.size(-1);
  if (client.image_height != 0 && (client.image_height / side) * (client.image_width / side) != count) {
    throw NotModelled(fmt::format("images of {} x {} pixels: its table of positions has {} patches",
                                  client.image_height, client.image_width, count));
  }
  const Shape pixels{images, projection.module->input, count * side * side};
  const Value image = context.tape.outside(pixels, context.setup.policy.parameter);
  const Shape shape{images, projection.module->output, count};
  const Value channels = convolution(image, projection.weight, projection.bias, shape);
  const Value tokens = view(channels, {shape[0], shape[2], shape[1]});
  // A model that reads no words has these for its embedding.
  return context.model.architecture.vocabulary == 0 ? embedding_output(context, tokens) : tokens;
}

Value behind_token(const Value& token, const Value& patches) {
  const Shape one{patches.size(0), 1, patches.size(2)};
  const std::array parts{expand(token, one), patches};
  return cat(parts, {one[0], patches.size(1) + 1, one[2]});
}

void rotate_patches(Value& q, Value& k, const Value& rotations) {
  const auto [narrow_q, narrow_k] = [&] {
    const Value wide_q = to(q, DType::f32);
    const Value wide_k = to(k, DType::f32);
    const Value rotated_q = mul(wide_q, rotations);
    const Value rotated_k = mul(wide_k, rotations);
    Value back_q = to(rotated_q, q.dtype());
    Value back_k = to(rotated_k, k.dtype());
    return std::pair(std::move(back_q), std::move(back_k));
  }();
  q = narrow_q;
  k = narrow_k;
}

}  // namespace shardplan::autograd
