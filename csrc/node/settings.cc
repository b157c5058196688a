#include "node/settings.h"

#include <map>

#include "model/stop_strings.h"
#include "node/arguments.h"

namespace rlhf::node {
namespace {

template <class Value>
Value named(const std::map<std::string, Value>& values, const std::string& name, const char* what) {
  const auto found = values.find(name);
  if (found == values.end())
    throw Error(code::kConfig, format("%s \"%s\" is not supported", what, name.c_str()));
  return found->second;
}

}  // namespace

Activation toActivation(const std::string& name) {
  return named<Activation>({{"none", Activation::None},
                            {"gelu_tanh", Activation::GeluTanh},
                            {"gelu", Activation::GeluErf},
                            {"tanh", Activation::Tanh},
                            {"relu", Activation::Relu},
                            {"silu", Activation::Silu}},
                           name, "activation");
}

ModelConfig toModelConfig(const Napi::Object& object) {
  ModelConfig config;
  config.family = named<Family>({{"gpt2", Family::Gpt2},
                                 {"llama", Family::Llama},
                                 {"mistral", Family::Llama},
                                 {"qwen2", Family::Llama},
                                 {"qwen3", Family::Llama},
                                 {"gpt_neox", Family::GptNeoX}},
                                toText(field(object, "family"), "family"), "model family");
  config.layers = toInteger(field(object, "layers"), "layers");
  config.hidden = toInteger(field(object, "hidden"), "hidden");
  config.heads = toInteger(field(object, "heads"), "heads");
  config.kvHeads = integer(object, "kvHeads", config.heads);
  config.headDim = toInteger(field(object, "headDim"), "headDim");
  config.intermediate = toInteger(field(object, "intermediate"), "intermediate");
  config.vocab = toInteger(field(object, "vocab"), "vocab");
  config.maxPositions = toInteger(field(object, "maxPositions"), "maxPositions");
  config.normEps = number(object, "normEps", config.normEps);
  config.inverseFrequencies = toNumbers(field(object, "inverseFrequencies"), "inverseFrequencies");
  config.rotaryScale = number(object, "rotaryScale", config.rotaryScale);
  config.windows = toIntegers(field(object, "windows"), "windows");
  config.activation = toActivation(toText(field(object, "activation"), "activation"));
  config.tiedEmbeddings = boolean(object, "tiedEmbeddings", false);
  config.attentionBias = boolean(object, "attentionBias", false);
  config.attentionOutBias = boolean(object, "attentionOutBias", false);
  config.mlpBias = boolean(object, "mlpBias", false);
  config.headNorm = boolean(object, "headNorm", false);
  config.parallelResidual = boolean(object, "parallelResidual", false);
  config.validate();
  return config;
}

DType toStorageType(const std::string& name) {
  if (name == "float32") return DType::F32;
  if (name == "float16") return DType::F16;
  if (name == "bfloat16") return DType::BF16;
  throw Error(code::kUnsupported,
              format("weights cannot be kept as \"%s\"; use float32, float16 or bfloat16", name.c_str()));
}

DType toComputeType(const std::string& name) { return name == dtypeName(DType::BF16X3) ? DType::BF16X3 : toStorageType(name); }

AdapterConfig toAdapterConfig(const Napi::Object& object) {
  AdapterConfig config;
  const Napi::Value layers = field(object, "layers");
  if (!layers.IsArray()) throwArgument("layers must be an array");
  const Napi::Array list = layers.As<Napi::Array>();
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Object layer = toObject(list.Get(i), "an element of layers");
    config.layers.push_back({toText(field(layer, "module"), "module"), toInteger(field(layer, "rank"), "rank"),
                             toNumber(field(layer, "scale"), "scale")});
  }
  config.dropout = number(object, "dropout", 0);
  config.trainable = boolean(object, "trainable", true);
  config.seed = static_cast<uint64_t>(integer(object, "seed", 0));
  return config;
}

HeadConfig toHeadConfig(const Napi::Object& object) {
  HeadConfig config;
  config.inner = integer(object, "inner", 0);
  config.activation = toActivation(text(object, "activation", "tanh"));
  config.bias = boolean(object, "bias", true);
  config.initStd = number(object, "initStd", 0);
  config.seed = static_cast<uint64_t>(integer(object, "seed", 0));
  return config;
}

Batch toBatch(const Napi::Object& object) {
  Batch batch;
  batch.tokens = toInt32s(field(object, "tokens"), "batch.tokens");
  batch.offsets = toInt32s(field(object, "offsets"), "batch.offsets");
  const Napi::Value parents = object.Get("parents");
  if (!parents.IsUndefined()) batch.parents = toInt32s(parents, "batch.parents");
  batch.predictions = toInt32s(field(object, "predictions"), "batch.predictions");
  const Napi::Value valueRows = object.Get("valueRows");
  if (!valueRows.IsUndefined()) batch.valueRows = toInt32s(valueRows, "batch.valueRows");
  return batch;
}

ForwardOptions toForwardOptions(const Napi::Object& object) {
  ForwardOptions options;
  options.adapter = text(object, "adapter", "");
  options.head = text(object, "head", "");
  options.temperature = number(object, "temperature", 1);
  options.grad = boolean(object, "grad", false);
  options.keepLogits = boolean(object, "keepLogits", true);
  options.statistics = boolean(object, "statistics", true);
  if (!object.Get("dropoutSeed").IsUndefined())
    options.dropoutSeed = static_cast<uint64_t>(toInteger(object.Get("dropoutSeed"), "dropoutSeed"));
  options.keepDistribution = boolean(object, "keepDistribution", false);
  const std::string direction = text(object, "klDirection", "reverse");
  if (direction != "reverse" && direction != "forward")
    throwArgument("klDirection must be \"reverse\" or \"forward\", got \"" + direction + "\"");
  options.klDirection = direction == "reverse" ? KlDirection::Reverse : KlDirection::Forward;
  return options;
}

namespace {

/// { bytes: Uint8Array, offsets: Int32Array, strings: string[] }
std::shared_ptr<const StopStrings> toStopStrings(Napi::Value value) {
  if (value.IsUndefined()) return nullptr;
  const Napi::Object object = toObject(value, "stopStrings");
  const Napi::Value bytes = field(object, "bytes");
  if (!bytes.IsTypedArray() || bytes.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    throwArgument("stopStrings.bytes must be a Uint8Array");
  const Napi::Uint8Array array = bytes.As<Napi::Uint8Array>();
  std::string copy;
  if (array.ElementLength() > 0) copy.assign(reinterpret_cast<const char*>(array.Data()), array.ElementLength());
  return std::make_shared<const StopStrings>(std::move(copy), toInt32s(field(object, "offsets"), "stopStrings.offsets"),
                                             toTexts(field(object, "strings"), "stopStrings.strings"));
}

}  // namespace

GenerateOptions toGenerateOptions(const Napi::Object& object) {
  GenerateOptions options;
  options.maxNewTokens = integer(object, "maxNewTokens", options.maxNewTokens);
  options.minNewTokens = integer(object, "minNewTokens", 0);
  options.temperature = number(object, "temperature", 1);
  options.topP = number(object, "topP", 1);
  options.minP = number(object, "minP", 0);
  options.repetitionPenalty = number(object, "repetitionPenalty", 1);
  options.topK = integer(object, "topK", 0);
  options.seed = static_cast<uint64_t>(integer(object, "seed", 0));
  options.firstStream = integer(object, "firstStream", 0);
  options.stopTokens = toInt32s(field(object, "stopTokens"), "stopTokens");
  options.stopStrings = toStopStrings(object.Get("stopStrings"));
  options.maxBatch = integer(object, "maxBatch", options.maxBatch);
  options.adapter = text(object, "adapter", "");
  return options;
}

std::vector<std::vector<int32_t>> toPrompts(Napi::Value value) {
  if (!value.IsArray()) throwArgument("prompts must be an array of Int32Array");
  const Napi::Array array = value.As<Napi::Array>();
  std::vector<std::vector<int32_t>> prompts;
  for (uint32_t i = 0; i < array.Length(); ++i) prompts.push_back(toInt32s(array.Get(i), "prompts"));
  return prompts;
}

Napi::Value toParameterList(Napi::Env env, const std::vector<ParameterInfo>& parameters) {
  Napi::Array result = Napi::Array::New(env, parameters.size());
  for (uint32_t i = 0; i < parameters.size(); ++i) {
    const ParameterInfo& parameter = parameters[i];
    Napi::Array shape = Napi::Array::New(env, parameter.shape.size());
    for (uint32_t d = 0; d < parameter.shape.size(); ++d)
      shape.Set(d, static_cast<double>(parameter.shape[d]));
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", parameter.name);
    entry.Set("shape", shape);
    entry.Set("group", parameter.group);
    entry.Set("trainable", parameter.trainable);
    result.Set(i, entry);
  }
  return result;
}

Napi::Value toLinearLayerList(Napi::Env env, const std::vector<LinearLayerInfo>& layers) {
  Napi::Array list = Napi::Array::New(env, layers.size());
  for (uint32_t i = 0; i < layers.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("module", layers[i].module);
    entry.Set("inputs", static_cast<double>(layers[i].inputs));
    entry.Set("outputs", static_cast<double>(layers[i].outputs));
    entry.Set("transposed", layers[i].transposed);
    entry.Set("attention", layers[i].attention);
    list.Set(i, entry);
  }
  return list;
}

Napi::Value toMemoryObject(Napi::Env env, const MemoryBytes& bytes) {
  Napi::Object result = Napi::Object::New(env);
  for (size_t use = 0; use < kMemoryUses; ++use)
    result.Set(memoryUseName(static_cast<MemoryUse>(use)), static_cast<double>(bytes[use]));
  return result;
}

Napi::Value toGenerations(Napi::Env env, const std::vector<Generation>& generations) {
  Napi::Array result = Napi::Array::New(env, generations.size());
  for (uint32_t i = 0; i < generations.size(); ++i) {
    const std::vector<int32_t>& tokens = generations[i].tokens;
    Napi::Int32Array copy = Napi::Int32Array::New(env, tokens.size());
    std::copy(tokens.begin(), tokens.end(), copy.Data());
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("tokens", copy);
    entry.Set("stopped", generations[i].stopped);
    result.Set(i, entry);
  }
  return result;
}

}  // namespace rlhf::node
