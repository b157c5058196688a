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

/// The bytes [offset, offset + bytes) must lie in the file: known before memory is taken for them.
void requireInside(std::FILE* file, const std::string& path, const std::string& parameter, int64_t offset, int64_t bytes) {
  struct stat status {};
  if (fstat(fileno(file), &status) != 0 || !S_ISREG(status.st_mode))
    throw Error(code::kFile, format("%s: is not a regular file", path.c_str()));
  if (offset > status.st_size - bytes)
    throw Error(code::kFile, format("%s: the file ends inside the data of %s; it is truncated, copy it again", path.c_str(),
                                    parameter.c_str()));
}

/// One parameter's numbers in a file, read piece by piece.
class StoredNumbers {
 public:
  StoredNumbers(const std::string& path, const std::string& parameter, int64_t offset, DType type)
      : path_(path), parameter_(parameter), offset_(offset), type_(type), file_(std::fopen(path.c_str(), "rb")) {
    if (!file_) throw Error(code::kFile, format("%s: cannot be opened: %s", path.c_str(), std::strerror(errno)));
  }

  std::FILE* file() const { return file_.get(); }

  void read(int64_t first, int64_t count, float* values) {
    raw_.resize(static_cast<size_t>(count) * dtypeSize(type_));
    const auto begin = static_cast<off_t>(offset_ + first * static_cast<int64_t>(dtypeSize(type_)));
    if (fseeko(file_.get(), begin, SEEK_SET) != 0 || std::fread(raw_.data(), 1, raw_.size(), file_.get()) != raw_.size())
      throw Error(code::kFile, format("%s: the data of %s cannot be read", path_.c_str(), parameter_.c_str()));
    convertToFloat(raw_.data(), type_, values, static_cast<size_t>(count));
  }

  /// Throws where one of `count` numbers is not finite.
  void requireFinite(int64_t count) {
    constexpr int64_t kPiece = int64_t{1} << 20;
    std::vector<float> values(static_cast<size_t>(std::min(count, kPiece)));
    for (int64_t first = 0; first < count; first += kPiece) {
      const int64_t length = std::min(kPiece, count - first);
      read(first, length, values.data());
      const auto end = values.begin() + length;
      const auto bad = std::find_if(values.begin(), end, [](float value) { return !std::isfinite(value); });
      if (bad != end)
        throw Error(code::kWeights, format("%s: %s holds a value that is not finite at element %lld", path_.c_str(),
                                           parameter_.c_str(), static_cast<long long>(first + (bad - values.begin()))));
    }
  }

 private:
  const std::string& path_;
  const std::string& parameter_;
  int64_t offset_;
  DType type_;
  File file_;
  std::vector<char> raw_;
};

}  // namespace

void loadParameterFromFile(Model& model, const std::string& parameter, const std::string& path, int64_t offset,
                           int64_t count, DType type) {
  if (offset < 0 || count < 0)
    throw Error(code::kArgument, format("%s: offset and count must be at least 0, got %lld and %lld", parameter.c_str(),
                                        static_cast<long long>(offset), static_cast<long long>(count)));
  StoredNumbers numbers(path, parameter, offset, type);
  requireInside(numbers.file(), path, parameter, offset, count * static_cast<int64_t>(dtypeSize(type)));
  if (model.engine().plans()) return;
  numbers.requireFinite(count);  // before anything is written
  model.writeParameter(parameter, count, [&](int64_t first, int64_t length, float* values) { numbers.read(first, length, values); });
}

}  // namespace rlhf
