import assert from "node:assert/strict";
import { kernels } from "../support/kernels.ts";

const SEEDS = Array.from({ length: 20 }, (_, seed) => seed);

/** Kernels without a bug: right under every schedule. */
const SOUND = ["copy", "exchange", "collective", "vote"];

/** What the documented register layouts say (csrc/simt/selftest_lanes.cc). */
const LANE_MAPS = ["lanes: ldmatrix", "lanes: ldmatrix transposed", "lanes: mma"];

/** Kernels with one bug each, found under every schedule, and how the report names it. */
const BUGS: Readonly<Record<string, RegExp>> = {
  "copy: wait depth": /^wrong result: .*nan/,
  "copy: no barrier after the wait": /^wrong result: .*nan/,
  "copy: no barrier before the refill": /^wrong result/,
  "copy: no empty group at the end": /^wrong result: .*nan/,
  "copy: misaligned": /cp\.async at selftest_bugs\.cc:\d+: the address is not aligned to 16 bytes/,
  "exchange: lock-step assumed": /^wrong result: .*nan/,
  "exchange: read before written": /^wrong result: element 4 is .*nan/,
  "exchange: past the end": /past the end of its shared memory/,
  "collective: divergent shuffle": /divergent warp: .* at selftest_bugs\.cc:\d+ while lanes 0x[0-9a-f]+ wait/,
  "collective: outside the mask":
    /__syncwarp at selftest_bugs\.cc:\d+ with the mask 0x0000ffff, which leaves it out/,
  "collective: a lane has ended":
    /deadlock: \d+ threads have ended, .*wait in a shuffle at selftest_bugs\.cc:\d+/,
  "collective: divergent barrier": /divergent barrier: .*selftest_bugs\.cc:\d+ .*selftest_bugs\.cc:\d+/,
  "collective: barrier against shuffle": /divergent barrier|deadlock: .*wait in __syncthreads/,
  "limits: threads": /2048 threads per block/,
  "limits: shared memory": /204800 bytes of shared memory/,
  "lanes: misaligned ldmatrix": /ldmatrix at selftest_lanes\.cc:\d+: the address is not aligned to 16 bytes/,
};

/** Found under some schedules only: the fixed order, seed 0, is the one that hides it. */
const ORDER_DEPENDENT = ["block order"];

describe("emulator of the CUDA execution model", () => {
  for (const name of [...SOUND, ...LANE_MAPS]) {
    it(`${name}: sound under ${SEEDS.length} schedules`, () => {
      for (const seed of SEEDS) assert.equal(kernels.runSimtSelfTest(name, seed), "", `seed ${seed}`);
    });
  }

  for (const [name, report] of Object.entries(BUGS)) {
    it(`finds the bug "${name}" under ${SEEDS.length} schedules`, () => {
      for (const seed of SEEDS) assert.match(kernels.runSimtSelfTest(name, seed), report, `seed ${seed}`);
    });
  }

  for (const name of ORDER_DEPENDENT) {
    it(`finds the bug "${name}" under most schedules but the fixed one`, () => {
      const found = SEEDS.filter((seed) => kernels.runSimtSelfTest(name, seed) !== "");
      assert.ok(!found.includes(0), "seed 0 is the order by index");
      assert.ok(found.length >= SEEDS.length - 3, `found under ${found.length} of ${SEEDS.length}`);
    });
  }

  it("gives the same report for the same seed", () => {
    const name = "collective: divergent shuffle";
    for (const seed of SEEDS)
      assert.equal(kernels.runSimtSelfTest(name, seed), kernels.runSimtSelfTest(name, seed));
  });

  it("runs on after an error", () => {
    assert.notEqual(kernels.runSimtSelfTest("collective: a lane has ended", 1), "");
    assert.equal(kernels.runSimtSelfTest("collective", 1), "");
  });

  it("has every self-test covered here", () => {
    const covered = [...SOUND, ...LANE_MAPS, ...Object.keys(BUGS), ...ORDER_DEPENDENT];
    assert.deepEqual(kernels.simtSelfTests().sort(), covered.sort());
  });
});
