// Stable Diffusion 3 with its encoders beside the transformer, as examples/dreambooth/train_dreambooth_sd3.py of diffusers 0.39
// trains it: each batch's texts go through three frozen encoders, its images through the frozen autoencoder. An encoder that
// the pipeline lacks has said what it had to say before the training; its features are the batch's.
#include <array>
#include <string>

#include "planner/activations/hf/hf_autoencoder.h"
#include "planner/activations/hf/hf_clip.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_sd3.h"
#include "planner/activations/hf/hf_t5.h"
#include "planner/activations/torch_ops.h"

namespace shardplan::autograd {
namespace {

constexpr std::string_view kTransformer = "transformer.";

bool below(std::string_view tensor, std::string_view member) {
  return tensor.substr(0, member.size()) == member;
}

void check_frozen(const ForwardContext& context) {
  for_each_tensor(context.held, [](const std::string& name, const Tensor& tensor) {
    if (tensor.trainable && !below(name, kTransformer))
      throw NotModelled("encoders that are trained, " + name + " first");
  });
}

// .repeat(1, images of a prompt, 1)
Value repeated(const Value& x) {
  return copied(x, x.shape());
}

// What encode_prompt of the script makes: CLIP's features side by side, widened to T5's, and T5's behind them.
TextFeatures encode_prompt(ForwardContext& context, std::uint64_t width, std::uint64_t tokens) {
  Tape& tape = context.tape;
  const DType dtype = context.setup.policy.compute;
  const Evaluation evaluation(tape);
  std::vector<TextFeatures> clip;
  for (const char* member : {"text_encoder.", "text_encoder_2."})
    clip.push_back(clip_text(context, member, kSd3ClipTokens));
  const Shape both{context.batch(), kSd3ClipTokens, clip[0].states.size(2) + clip[1].states.size(2)};
  const Value states = cat(std::array{clip[0].states, clip[1].states}, both);
  const Value pooled = cat(std::array{clip[0].pooled, clip[1].pooled},
                           {context.batch(), clip[0].pooled.size(1) + clip[1].pooled.size(1)});
  const Value words = [&] {
    if (!has_module(context, "text_encoder_3.encoder.embed_tokens")) {
      return tape.allocate("zeros", {context.batch(), tokens, width}, dtype);
    }
    const Value features = t5_encoder(context, "text_encoder_3.", tokens);
    return repeated(features);
  }();
  const Value widened = tape.allocate("pad", {context.batch(), kSd3ClipTokens, width}, dtype);
  const Shape shape{context.batch(), kSd3ClipTokens + tokens, width};
  return {.states = cat(std::array{widened, words}, shape), .pooled = pooled};
}

Value pipeline(ForwardContext& context) {
  check_frozen(context);
  Tape& tape = context.tape;
  const std::string base(kTransformer);
  const DType dtype = context.setup.policy.compute;
  const bool folded = !std::exchange(context.unfolded, true);  // CLIP's encoders keep what each block reads
  const auto input_of = [&](const std::string& name) {
    return required_unit(context, base + name).module(base + name).input;
  };
  const std::uint64_t width = input_of("context_embedder");
  if (context.tokens() != 0 && context.tokens() <= kSd3ClipTokens) {
    throw NotModelled("a text of no more tokens than CLIP's encoders make");
  }
  const std::uint64_t tokens = context.tokens() == 0 ? kSd3T5Tokens : context.tokens() - kSd3ClipTokens;
  const bool reads_texts = has_module(context, "text_encoder.text_model.embeddings.token_embedding");
  TextFeatures text;
  if (reads_texts) {
    text = encode_prompt(context, width, tokens);
  } else {
    text = {.states = tape.outside({context.batch(), kSd3ClipTokens + tokens, width}, dtype),
            .pooled = tape.outside({context.batch(), input_of("time_text_embed.text_embedder.linear_1")}, dtype)};
  }
  const Sd3Latents size = sd3_latents(context);
  const Parameters patches = required_unit(context, base + "pos_embed.proj")[base + "pos_embed.proj"];
  const Shape latents{context.batch(), patches.weight.size(1), size.height, size.width};
  Value clean;
  if (has_module(context, "vae.encoder.conv_in")) {
    const Evaluation evaluation(tape);
    clean = sampled_latents(context, "vae.", size.height * kSd3PixelsOfLatent, size.width * kSd3PixelsOfLatent);
    clean = scale(shift(clean));
  } else {
    clean = tape.outside(latents, dtype);
  }
  context.unfolded = !folded;
  const Value noise = tape.allocate("randn_like", latents, dtype);
  const Value noisy = add(scale(clean), scale(noise));
  return sd3_loss(context, base, {.noisy = noisy, .text = text.states, .pooled = text.pooled, .target = [&] {
                                    return sub(noise, clean);
                                  }});
}

}  // namespace

std::span<const HfFamily> hf_sd3_pipeline_families() {
  static constexpr HfFamily families[] = {{"StableDiffusion3Pipeline", pipeline}};
  return families;
}

}  // namespace shardplan::autograd
