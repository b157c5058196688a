#pragma once
#include <string>

#include "ops/ops.h"

namespace rlhf {

/// Commands of an engine by all that they depend on beside what arrays hold: ops with their arguments, addresses included. Equal traces do the
/// same work on the same memory.
class CommandTrace {
 public:
  template <class Arguments>
  void add(Status (*op)(OpContext*, const Arguments*), Arguments arguments) {
    add(op);
    arguments.fields([this](const char*, const auto& field) { add(field); });
  }
  template <class... Values>
  void add(const Values&... values) {
    (bytes_.append(reinterpret_cast<const char*>(&values), sizeof values), ...);
  }

  bool operator==(const CommandTrace&) const = default;

 private:
  std::string bytes_;
};

}  // namespace rlhf
