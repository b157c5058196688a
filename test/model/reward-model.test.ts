import assert from "node:assert/strict";
import { readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  CausalLM,
  type EnsembleOptions,
  loadReward,
  RewardEnsemble,
  RewardModel,
  rewardCalibration,
} from "../../lib/index.ts";
import { randomSequences, TINY_GPT2, TINY_LLAMA, withTemporaryDirectory } from "../support/tiny.ts";

const LINEAR = { kind: "linear", bias: false, initStd: 0.5 } as const;
const MLP = { kind: "mlp", innerSize: 12, activation: "relu", initStd: 0.5 } as const;
const create = (family = TINY_LLAMA): Promise<CausalLM> =>
  CausalLM.create(family, { device: "cpu", seed: 5 });
const sequences = randomSequences([5, 1, 17, 9, 30, 2, 11], 53);
const bytes = (values: Float32Array): Buffer =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength);

describe("reward models", () => {
  for (const [name, family] of [
    ["llama", TINY_LLAMA],
    ["gpt2", TINY_GPT2],
  ] as const) {
    it(`${name}: a score has the same bits alone, in any batch and in any order`, async () => {
      using model = await create(family);
      using reward = RewardModel.create(model, { head: MLP });
      const together = await reward.score(sequences);
      for (const microBatchTokens of [1, 31, 40, 1000])
        assert.ok(bytes(await reward.score(sequences, { microBatchTokens })).equals(bytes(together)));
      const reversed = (await reward.score([...sequences].reverse())).reverse();
      assert.ok(bytes(reversed).equals(bytes(together)));
      for (const [i, sequence] of sequences.entries())
        assert.equal((await reward.score([sequence]))[0], together[i]);
      assert.ok(new Set(together).size === sequences.length, "the scores differ");
    });
  }

  for (const [kind, head] of [
    ["linear", LINEAR],
    ["mlp", MLP],
  ] as const) {
    it(`statistics of a ${kind} head are saved beside the weights and applied when asked for`, async () => {
      await withTemporaryDirectory(async (directory) => {
        using model = await create();
        using reward = RewardModel.create(model, { head });
        const raw = await reward.score(sequences);
        await assert.rejects(reward.score(sequences, { normalize: true }), { code: "ERR_RLHF_ARGUMENT" });
        const statistics = await reward.measureStatistics(sequences);
        const mean = raw.reduce((sum, score) => sum + score, 0) / raw.length;
        assert.ok(Math.abs((statistics?.mean ?? 0) - mean) < 1e-6);
        const normal = await reward.score(sequences, { normalize: true });
        const variance = normal.reduce((sum, score) => sum + score ** 2, 0) / (normal.length - 1);
        assert.ok(
          Math.abs(normal.reduce((sum, score) => sum + score, 0)) < 1e-5 && Math.abs(variance - 1) < 1e-5,
        );
        assert.ok(bytes(await reward.score(sequences)).equals(bytes(raw)), "raw scores stay raw");

        await reward.save(directory);
        using loaded = await RewardModel.load(directory, { device: "cpu" });
        assert.deepEqual(loaded.statistics, statistics);
        assert.ok(bytes(await loaded.score(sequences)).equals(bytes(raw)));
        assert.ok(bytes(await loaded.score(sequences, { normalize: true })).equals(bytes(normal)));

        loaded.statistics = null;
        await loaded.save(directory);
        using bare = await RewardModel.load(directory, { device: "cpu" });
        assert.equal(bare.statistics, null);
      });
    });
  }

  it("scores that are all alike have no statistics; a damaged file of them is an error", async () => {
    await withTemporaryDirectory(async (directory) => {
      using model = await create();
      using reward = RewardModel.create(model);
      assert.equal(await reward.measureStatistics(sequences), null);
      await reward.save(directory);
      const file = join(directory, "reward_statistics.json");
      await assert.rejects(readFile(file), { code: "ENOENT" });
      await writeFile(file, '{"mean": 1, "deviation": 0, "count": 3}');
      await assert.rejects(RewardModel.load(directory, { device: "cpu" }), {
        code: "ERR_RLHF_MODEL",
        message: /reward_statistics\.json/,
      });
    });
  });

  for (const dtype of ["float32", "bfloat16"] as const)
    it(`several reward models share a backbone in memory, each with a head of its own: ${dtype}`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const options = { device: "cpu", dtype } as const;
        using model = await CausalLM.create(TINY_LLAMA, { ...options, seed: 5 });
        const scores: Float32Array[] = [];
        for (const [i, head] of [LINEAR, MLP].entries()) {
          using reward = RewardModel.create(model, { head: { ...head, seed: i } });
          scores.push(await reward.score(sequences));
          await reward.save(join(directory, String(i)));
        }
        assert.equal(model.heads.size, 0);
        using first = await RewardModel.load(join(directory, "0"), { ...options, backbone: model });
        using second = await RewardModel.load(join(directory, "1"), { ...options, backbone: model });
        assert.ok(first.model === model && second.model === model && first.head !== second.head);
        assert.ok(bytes(await first.score(sequences)).equals(bytes(scores[0] as Float32Array)));
        assert.ok(bytes(await second.score(sequences)).equals(bytes(scores[1] as Float32Array)));
        // The same weights with other positions are another model.
        const configPath = join(directory, "0", "config.json");
        const config = JSON.parse(await readFile(configPath, "utf8")) as Record<string, unknown>;
        await writeFile(configPath, JSON.stringify({ ...config, rope_theta: 77 }));
        using apart = await RewardModel.load(join(directory, "0"), { ...options, backbone: model });
        assert.ok(apart.model !== model);
        assert.ok(!bytes(await apart.score(sequences)).equals(bytes(scores[0] as Float32Array)));
        await second.save(join(directory, "again"));
        using again = await RewardModel.load(join(directory, "again"), options);
        assert.ok(bytes(await again.score(sequences)).equals(bytes(scores[1] as Float32Array)));
      });
    });
});

describe("reward ensembles", () => {
  const members = async (): Promise<RewardModel[]> => {
    const list: RewardModel[] = [];
    for (const seed of [1, 2, 3]) {
      const model = await create();
      list.push(RewardModel.create(model, { head: { ...LINEAR, seed } }));
    }
    return list;
  };

  it("combine by mean, min and mean − κ·deviation, and tell how far the members are apart", async () => {
    const list = await members();
    const raw = await Promise.all(list.map((member) => member.score(sequences)));
    const expectations: [EnsembleOptions, (values: number[], mean: number, spread: number) => number][] = [
      [{}, (_, mean) => mean],
      [{ combine: "min" }, (values) => Math.min(...values)],
      [{ combine: "mean-std", kappa: 0.7 }, (_, mean, spread) => mean - 0.7 * spread],
    ];
    for (const [options, expected] of expectations) {
      const ensemble = new RewardEnsemble(list, options);
      const { scores, spread } = await ensemble.scoreWithSpread(sequences);
      sequences.forEach((_, i) => {
        const values = raw.map((row) => row[i] as number);
        const mean = values.reduce((sum, value) => sum + value, 0) / 3;
        const deviation = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / 3);
        assert.ok(deviation > 1e-3 && Math.abs((spread[i] as number) - deviation) < 1e-6);
        assert.ok(Math.abs((scores[i] as number) - expected(values, mean, deviation)) < 1e-6);
      });
    }
    for (const member of list) member.model.dispose();
  });

  it("are saved, loaded with one backbone in memory, and normalise members by their own statistics", async () => {
    await withTemporaryDirectory(async (directory) => {
      const list = await members();
      for (const member of list) await member.measureStatistics(sequences);
      const ensemble = new RewardEnsemble(list, { combine: "mean-std", kappa: 0.5 });
      const expected = await ensemble.score(sequences);
      await ensemble.save(directory);
      for (const member of list) member.model.dispose();

      using loaded = await loadReward(directory, { device: "cpu" });
      assert.ok(loaded instanceof RewardEnsemble);
      assert.equal(new Set(loaded.members.map((member) => member.model)).size, 1);
      assert.ok(bytes(await loaded.score(sequences)).equals(bytes(expected)));
      const raw = await loaded.score(sequences, { normalize: false });
      assert.notDeepEqual(raw, expected);

      const paths = [0, 1].map((i) => join(directory, `member-${i}`));
      using two = await loadReward(paths, { device: "cpu", combine: "min" });
      assert.ok(two instanceof RewardEnsemble && two.members.length === 2 && two.combine === "min");
      using one = await loadReward(paths.slice(0, 1), { device: "cpu" });
      assert.ok(one instanceof RewardModel);

      await rm(join(directory, "member-1/reward_statistics.json"));
      await assert.rejects(loadReward(directory, { device: "cpu" }), {
        code: "ERR_RLHF_ARGUMENT",
        message: /2 of 3 members have statistics/,
      });
      await assert.rejects(loadReward(paths[0] as string, { device: "cpu", kappa: 2 }), {
        code: "ERR_RLHF_ARGUMENT",
      });
      await writeFile(join(directory, "ensemble.json"), '{"members": []}');
      await assert.rejects(loadReward(directory, { device: "cpu" }), { code: "ERR_RLHF_MODEL" });
    });
  });
});

describe("reward ensembles of adapters", () => {
  it("share the base that they name, and no other", async () => {
    await withTemporaryDirectory(async (directory) => {
      const at = (name: string): string => join(directory, name);
      const expected: Float32Array[] = [];
      for (const [i, base] of ["one", "one", "other"].entries()) {
        if (i !== 1) {
          using made = await CausalLM.create(TINY_LLAMA, { device: "cpu", seed: 5 + i });
          await made.save(at(base));
        }
        using model = await CausalLM.load(at(base), { device: "cpu" });
        model.addAdapter("a", { r: 2, alpha: 4, seed: i });
        for (const { name } of model.parameters().filter((parameter) => parameter.name.endsWith("lora_B")))
          await model.writeParameter(
            name,
            (await model.readParameter(name)).map((_, j) => Math.sin(j + i)),
          );
        using reward = RewardModel.create(model, { adapter: "a", head: { ...LINEAR, seed: i } });
        expected.push(await reward.score(sequences));
        await reward.measureStatistics(sequences);
        await reward.saveAdapter(at(`adapter-${i}`));
      }
      // A model of other weights does not lend itself to an adapter.
      using other = await CausalLM.load(at("other"), { device: "cpu" });
      using beside = await RewardModel.load(at("adapter-0"), { device: "cpu", backbone: other });
      assert.ok(beside.model !== other);
      assert.ok(bytes(await beside.score(sequences)).equals(bytes(expected[0] as Float32Array)));
      const paths = [0, 1, 2].map((i) => at(`adapter-${i}`));
      using ensemble = await RewardEnsemble.load(paths, { device: "cpu" });
      assert.equal(new Set(ensemble.members.map((member) => member.model)).size, 2);
      for (const [i, member] of ensemble.members.entries()) {
        assert.ok(member.statistics !== null);
        assert.ok(bytes(await member.score(sequences)).equals(bytes(expected[i] as Float32Array)), `${i}`);
      }
    });
  });
});

describe("calibration of rewards", () => {
  it("bins probabilities of the answer scored higher, and compares them with how often it is the better one", () => {
    // Probabilities 0.6 twice, one of them right; 0.9 twice, both right; 0.5 once, which is no prediction.
    const logit = (p: number): number => Math.log(p / (1 - p));
    const chosen = [logit(0.6), 0, logit(0.9), logit(0.9), 1];
    const rejected = [0, logit(0.6), 0, 0, 1];
    const found = rewardCalibration(chosen, rejected);
    assert.ok(found);
    assert.equal(found.pairs, 5);
    const filled = found.bins.filter((bin) => bin.pairs > 0);
    assert.deepEqual(
      filled.map(({ pairs, accuracy }) => ({ pairs, accuracy })),
      [
        { pairs: 1, accuracy: 0.5 },
        { pairs: 2, accuracy: 0.5 },
        { pairs: 2, accuracy: 1 },
      ],
    );
    assert.ok(Math.abs(found.ece - (2 * 0.1 + 2 * 0.1) / 5) < 1e-6);
    assert.ok(Math.abs(found.brier - (0.16 + 0.36 + 0.01 + 0.01 + 0.25) / 5) < 1e-6);
    assert.equal(rewardCalibration([], []), null);
  });

  it("counts a tie as half right", () => {
    const found = rewardCalibration([2], [0], [0.5]);
    assert.equal(found?.bins.find((bin) => bin.pairs === 1)?.accuracy, 0.5);
  });
});
