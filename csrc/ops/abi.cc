#include <type_traits>

#include "ops/ops.h"

namespace rlhf {
namespace {

/// FNV-1a, 64 bits (Fowler, Noll, Vo).
class Hash {
 public:
  void text(const char* characters) {
    for (; *characters; ++characters) byte(static_cast<unsigned char>(*characters));
    byte(0);
  }
  void number(uint64_t value) {
    for (int shift = 0; shift < 64; shift += 8) byte(static_cast<unsigned char>(value >> shift));
  }
  uint64_t value() const { return value_; }

 private:
  void byte(unsigned char value) { value_ = (value_ ^ value) * 0x100000001b3ull; }
  uint64_t value_ = 0xcbf29ce484222325ull;
};

/// A letter for each kind of field; the size of the field is hashed beside it.
template <class Field>
constexpr const char* kindOf() {
  if constexpr (std::is_pointer_v<Field>) {
    return std::is_const_v<std::remove_pointer_t<Field>> ? "input" : "output";
  } else if constexpr (std::is_same_v<Field, DType>) {
    return "dtype";
  } else if constexpr (std::is_enum_v<Field>) {
    return "enum";
  } else if constexpr (std::is_floating_point_v<Field>) {
    return "real";
  } else {
    return std::is_signed_v<Field> ? "integer" : "unsigned";
  }
}

/// What a pointer field points at: another element type is another contract.
template <class Field>
constexpr uint64_t elementSize() {
  using Element = std::remove_pointer_t<Field>;
  if constexpr (std::is_void_v<std::remove_const_t<Element>>) return 0;
  else return sizeof(Element);
}

template <class Arguments>
void hashOp(Hash& hash, const char* name) {
  hash.text(name);
  hash.number(sizeof(Arguments));
  Arguments arguments;
  const char* base = reinterpret_cast<const char*>(&arguments);
  arguments.fields([&]<class Field>(const char* field, Field& value) {
    hash.text(field);
    hash.text(kindOf<Field>());
    hash.number(sizeof(Field));
    hash.number(elementSize<Field>());
    hash.number(static_cast<uint64_t>(reinterpret_cast<const char*>(&value) - base));
  });
}

uint64_t computeHash() {
  Hash hash;
#define RLHF_HASH_OP(name, Arguments) hashOp<Arguments>(hash, #name);
  RLHF_FOR_EACH_OP(RLHF_HASH_OP)
#undef RLHF_HASH_OP
  hash.number(sizeof(Device));
  hash.number(sizeof(DeviceLimits));
  hash.number(sizeof(OpContext));
  hash.number(sizeof(ScratchLimits));
  hash.number(sizeof(Ops));
  return hash.value();
}

}  // namespace

uint64_t abiHash() {
  static const uint64_t hash = computeHash();
  return hash;
}

}  // namespace rlhf
