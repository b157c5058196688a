#include "simt/selftest.h"

#include "core/error.h"
#include "simt/backend.h"
#include "simt/execution.h"

namespace rlhf::simt {
namespace {

std::vector<SelfTest> allTests() {
  std::vector<SelfTest> tests = bugTests();
  for (const SelfTest& test : laneMapTests()) tests.push_back(test);
  for (const SelfTest& test : hopperTests()) tests.push_back(test);
  return tests;
}

}  // namespace

std::vector<std::string> selfTestNames() {
  std::vector<std::string> names;
  for (const SelfTest& test : allTests()) names.push_back(test.name);
  return names;
}

std::string runSelfTest(const std::string& name, uint64_t seed) {
  for (const SelfTest& test : allTests()) {
    if (name != test.name) continue;
    const ScheduleSeed scope(seed);
    try {
      return test.run();
    } catch (const Error& error) {
      return error.what();
    }
  }
  throw Error(code::kUnknownName, format("the emulator has no self-test \"%s\"", name.c_str()));
}

}  // namespace rlhf::simt
