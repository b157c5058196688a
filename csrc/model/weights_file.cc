#include "model/weights_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

namespace rlhf {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

constexpr int64_t kChunk = int64_t{1} << 20;  // elements converted at a time

/// The bytes [offset, offset + bytes) must lie in the file: known before memory is taken for them.
void requireInside(std::FILE* file, const std::string& path, const std::string& parameter, int64_t offset, int64_t bytes) {
  struct stat status {};
  if (fstat(fileno(file), &status) != 0 || !S_ISREG(status.st_mode))
    throw Error(code::kFile, format("%s: is not a regular file", path.c_str()));
  if (offset > status.st_size - bytes)
    throw Error(code::kFile, format("%s: the file ends inside the data of %s; it is truncated, copy it again", path.c_str(),
                                    parameter.c_str()));
}

void readChunk(std::FILE* file, const std::string& path, const std::string& parameter, void* destination, size_t bytes) {
  if (std::fread(destination, 1, bytes, file) == bytes) return;
  throw Error(code::kFile, format("%s: the data of %s cannot be read", path.c_str(), parameter.c_str()));
}

}  // namespace

void loadParameterFromFile(Model& model, const std::string& parameter, const std::string& path, int64_t offset,
                           int64_t count, DType type) {
  if (offset < 0 || count < 0)
    throw Error(code::kArgument, format("%s: offset and count must be at least 0, got %lld and %lld", parameter.c_str(),
                                        static_cast<long long>(offset), static_cast<long long>(count)));
  const File file(std::fopen(path.c_str(), "rb"));
  if (!file) throw Error(code::kFile, format("%s: cannot be opened: %s", path.c_str(), std::strerror(errno)));
  requireInside(file.get(), path, parameter, offset, count * static_cast<int64_t>(dtypeSize(type)));
  if (model.engine().plans()) return;
  if (fseeko(file.get(), static_cast<off_t>(offset), SEEK_SET) != 0)
    throw Error(code::kFile, format("%s: cannot be read: %s", path.c_str(), std::strerror(errno)));
  std::vector<float> values(static_cast<size_t>(count));
  std::vector<char> raw(static_cast<size_t>(std::min(count, kChunk)) * dtypeSize(type));
  for (int64_t first = 0; first < count; first += kChunk) {
    const size_t length = static_cast<size_t>(std::min(kChunk, count - first));
    readChunk(file.get(), path, parameter, raw.data(), length * dtypeSize(type));
    convertToFloat(raw.data(), type, values.data() + first, length);
  }
  const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  if (bad != values.end())
    throw Error(code::kWeights, format("%s: %s holds a value that is not finite at element %lld", path.c_str(),
                                       parameter.c_str(), static_cast<long long>(bad - values.begin())));
  model.writeParameter(parameter, values.data(), count);
}

}  // namespace rlhf
