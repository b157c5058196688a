import type { Engine } from "./engine.ts";
import { call, callAsync, type NativeArray } from "./native.ts";

/** Arrays that operations read: in the process's memory, or where an earlier operation left them. */
export type FloatArray = Float32Array | DeviceArray;

/** An array of float32 that stays on the device where it was computed until it is read. */
export class DeviceArray implements Disposable {
  readonly native: NativeArray;

  constructor(handle: NativeArray) {
    this.native = handle;
  }

  get length(): number {
    return call(() => this.native.length);
  }

  /** A copy of its elements, after every command queued before. */
  read(): Promise<Float32Array> {
    return callAsync(() => this.native.read());
  }

  dispose(): void {
    this.native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What the addon takes: Float32Arrays as they are, handles unwrapped. */
export function toNative(array: FloatArray | undefined): Float32Array | NativeArray | undefined {
  return array instanceof DeviceArray ? array.native : array;
}

/** An array's elements in the process's memory. */
export async function readArray(array: FloatArray): Promise<Float32Array> {
  return array instanceof DeviceArray ? await array.read() : array;
}

/** The named outputs of an operation and the sums it reports. */
export type Outputs<Names extends string, Stats extends string = never> = {
  readonly [Name in Names]: DeviceArray;
} & { readonly stats: { readonly [Stat in Stats]: number } };

/** Runs an operation of the addon on arrays; its outputs stay on the device. */
export async function runOnArrays<Names extends string, Stats extends string>(
  engine: Engine,
  operation: (engine: Engine["native"], args: Readonly<Record<string, unknown>>) => Promise<object>,
  args: Readonly<Record<string, unknown>>,
): Promise<Outputs<Names, Stats>> {
  const unwrapped = Object.fromEntries(
    Object.entries(args).map(([name, value]) => [name, value instanceof DeviceArray ? value.native : value]),
  );
  const result = await callAsync(() => operation(engine.native, unwrapped));
  const wrapped = Object.entries(result).map(([name, value]) => [
    name,
    name === "stats" ? value : new DeviceArray(value as NativeArray),
  ]);
  return Object.fromEntries(wrapped) as Outputs<Names, Stats>;
}
