import assert from "node:assert/strict";
import { adamW, Engine, mlpBackward, mlpForward, mlpParameterCount, Random } from "../../lib/index.ts";
import { relativeDistance } from "../support/compare.ts";
import { kernels } from "../support/kernels.ts";

const STEP = 1e-30;
const SHAPES = [
  { sizes: [3, 5, 7, 2], activation: "tanh", rows: 6 },
  { sizes: [4, 1], activation: "tanh", rows: 3 },
  { sizes: [1, 17, 1], activation: "silu", rows: 1 },
] as const;

function normals(count: number, stream: string): Float64Array {
  const random = new Random(5, stream);
  return Float64Array.from({ length: count }, () => Math.fround(random.normal()));
}

function makeCase({ sizes, rows }: (typeof SHAPES)[number]) {
  return {
    x: normals(rows * sizes[0], "x"),
    parameters: normals(mlpParameterCount({ sizes }), "parameters"),
    dy: normals(rows * (sizes.at(-1) as number), "dy"),
  };
}

/** Real numbers as complex ones, with an imaginary step at one of them. */
function complexWithStep(values: Float64Array, at: number): Float64Array {
  const result = new Float64Array(2 * values.length);
  values.forEach((value, i) => {
    result[2 * i] = value;
  });
  if (at >= 0) result[2 * at + 1] = STEP;
  return result;
}

describe("small networks", () => {
  for (const shape of SHAPES) {
    const title = `${shape.sizes.join("-")} with ${shape.activation}`;

    it(`${title}: gradients of parameters and inputs by complex steps`, () => {
      const { x, parameters, dy } = makeCase(shape);
      const settings = { ...shape, x, parameters };
      const { gradient, dx } = kernels.runMlp({ ...settings, type: "float64", dy });
      const slope = (name: "x" | "parameters", at: number): number => {
        const { y } = kernels.runMlp({
          ...settings,
          type: "complex128",
          x: complexWithStep(x, name === "x" ? at : -1),
          parameters: complexWithStep(parameters, name === "parameters" ? at : -1),
        });
        return dy.reduce((sum, upstream, i) => sum + upstream * (y[2 * i + 1] as number), 0) / STEP;
      };
      assert.ok(
        relativeDistance(
          gradient!,
          parameters.map((_, at) => slope("parameters", at)),
        ) <= 1e-10,
      );
      assert.ok(
        relativeDistance(
          dx!,
          x.map((_, at) => slope("x", at)),
        ) <= 1e-10,
      );
    });

    it(`${title}: the engine is the oracle, rounded`, async () => {
      const { x, parameters, dy } = makeCase(shape);
      const oracle = kernels.runMlp({ ...shape, type: "float64", x, parameters, dy });
      const engine = Engine.shared();
      const { sizes, activation } = shape;
      const args = { sizes, activation, x: Float32Array.from(x), parameters: Float32Array.from(parameters) };
      const { y, kept } = await mlpForward(engine, args);
      const { gradient } = await mlpBackward(engine, { ...args, kept, dy: Float32Array.from(dy) });
      assert.ok(relativeDistance(Float64Array.from(await y.read()), oracle.y) <= 1e-5);
      assert.ok(relativeDistance(Float64Array.from(await gradient.read()), oracle.gradient!) <= 1e-5);
    });
  }

  it("gives a row the same bits alone as in a batch, on any number of threads", async () => {
    const { x, parameters } = makeCase(SHAPES[0]);
    const { sizes, activation } = SHAPES[0];
    const args = { sizes, activation, parameters: Float32Array.from(parameters) };
    const all = await mlpForward(Engine.shared({ threads: 3 }), { ...args, x: Float32Array.from(x) });
    const alone = await mlpForward(Engine.shared({ threads: 1 }), {
      ...args,
      x: Float32Array.from(x).slice(6, 9),
    });
    assert.deepEqual((await all.y.read()).slice(4, 6), await alone.y.read());
  });

  it("updates as AdamW's formula says and leaves its inputs alone", async () => {
    const parameters = Float32Array.of(1, -2);
    const gradient = Float32Array.of(0.5, 4);
    const zeros = new Float32Array(2);
    const result = await adamW(Engine.shared(), {
      parameters,
      gradient,
      m: zeros,
      v: zeros,
      step: 1,
      learningRate: 0.1,
      weightDecay: 0.5,
      gradientScale: 0.5,
    });
    // At the first step m̂/√v̂ is the gradient's sign.
    const expected = [1 - 0.05 - 0.1, -2 + 0.1 - 0.1];
    (await result.parameters.read()).forEach((value, i) => {
      assert.ok(Math.abs(value - (expected[i] as number)) < 1e-6, `${value}`);
    });
    assert.ok(Math.abs(((await result.m.read())[1] as number) - 0.2) < 1e-6);
    assert.deepEqual(parameters, Float32Array.of(1, -2));
  });

  it("refuses what does not fit the sizes", async () => {
    const engine = Engine.shared();
    const parameters = new Float32Array(mlpParameterCount({ sizes: [3, 2] }));
    const fails = (x: Float32Array, sizes: number[], code: string) =>
      assert.rejects(mlpForward(engine, { sizes, x, parameters }), { code });
    await fails(new Float32Array(4), [3, 2], "ERR_RLHF_SHAPE");
    await fails(new Float32Array(0), [3, 2], "ERR_RLHF_SHAPE");
    await fails(new Float32Array(3), [3, 3], "ERR_RLHF_SHAPE");
    await fails(new Float32Array(3), [3], "ERR_RLHF_ARGUMENT");
    await fails(new Float32Array(3), [3, 0], "ERR_RLHF_ARGUMENT");
  });
});
