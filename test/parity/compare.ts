import assert from "node:assert/strict";

type Numbers = ArrayLike<number>;

export function norm(values: Numbers): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += (values[i] as number) ** 2;
  return Math.sqrt(sum);
}

/** ‖actual − expected‖ / ‖expected‖. */
export function relativeDistance(actual: Numbers, expected: Numbers): number {
  assert.equal(actual.length, expected.length, "the arrays differ in length");
  const difference = Float64Array.from(expected, (e, i) => (actual[i] as number) - e);
  return norm(difference) / norm(expected);
}

/** Every element within `tolerance` of its expected value, relatively; an expected 0 must be 0. */
export function assertElementsClose(
  actual: Numbers,
  expected: Numbers,
  tolerance: number,
  what: string,
): void {
  assert.equal(actual.length, expected.length, `${what}: length`);
  for (let i = 0; i < expected.length; i++) {
    assertClose(actual[i] as number, expected[i] as number, tolerance, `${what}[${i}]`);
  }
}

/** Every element within `tolerance` of its expected value, relative to the largest expected magnitude (or to `scale`). */
export function assertAllClose(
  actual: Numbers,
  expected: Numbers,
  tolerance: number,
  what: string,
  scale = Math.max(...Array.from(expected, Math.abs)),
): void {
  assert.equal(actual.length, expected.length, `${what}: length`);
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs((actual[i] as number) - (expected[i] as number));
    assert.ok(error <= tolerance * scale, `${what}[${i}]: got ${actual[i]}, expected ${expected[i]}`);
  }
}

/** |actual − expected| ≤ tolerance·|expected|; NaN is never close. */
export function assertClose(actual: number, expected: number, tolerance: number, what: string): void {
  const error = Math.abs(actual - expected);
  assert.ok(
    error <= tolerance * Math.abs(expected),
    `${what}: got ${actual}, PyTorch has ${expected}: relative error ${(error / Math.abs(expected)).toExponential(2)}` +
      ` is over ${tolerance}`,
  );
}

/** The gradient within 2e-3 of PyTorch's in the Euclidean norm, and its norm within 2e-4. */
export function assertGradientClose(actual: Numbers, expected: Numbers, name: string): void {
  const distance = relativeDistance(actual, expected);
  assert.ok(
    distance <= 2e-3,
    `gradient of ${name}: relative distance ${distance.toExponential(2)} is over 2e-3`,
  );
  assertClose(norm(actual), norm(expected), 2e-4, `norm of the gradient of ${name}`);
}
