#include "cuda/hopper/vocabulary.h"

#include "cuda/hopper/products.cuh"

namespace rlhf::cuda {
namespace {

template <class Epilogue>
bool launchHead(OpContext& context, const MatmulArguments& arguments, const Epilogue& epilogue) {
  if (!covers<false, false>(arguments) || arguments.b[1].summedOuter) return false;
  launchTiles<HopperHeadSums::kCols, false, false, false>(context, arguments, epilogue);
  return true;
}

}  // namespace

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const StatisticsEpilogue<HopperHeadSums>& epilogue) {
  return launchHead(context, arguments, epilogue);
}

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LogitGradientEpilogue<bf16>& epilogue) {
  return launchHead(context, arguments, epilogue);
}

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const LogitsEpilogue& epilogue) {
  return launchHead(context, arguments, epilogue);
}

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const DivergenceEpilogue<HopperHeadSums>& epilogue) {
  return launchHead(context, arguments, epilogue);
}

bool launchHopperMatmul(OpContext& context, const MatmulArguments& arguments, const KlGradientEpilogue<bf16>& epilogue) {
  return launchHead(context, arguments, epilogue);
}

}  // namespace rlhf::cuda
