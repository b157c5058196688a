import {
  type ContinuousEnvironment,
  type DiscreteEnvironment,
  type EnvironmentStep,
  Random,
} from "../../lib/index.ts";

/**
 * A pole on a cart, pushed left or right (Barto, Sutton & Anderson 1983), with the constants that Gymnasium documents for CartPole-v1:
 * explicit Euler steps of 0.02 s, an end at ± 2.4 m or ± 12°, 500 steps at most, reward 1 for each.
 */
export class CartPole implements DiscreteEnvironment {
  readonly actionKind = "discrete";
  readonly observationSize = 4;
  readonly actionSize = 2;
  /** Position, velocity, angle, angular velocity. */
  #state = [0, 0, 0, 0];
  #time = 0;

  reset(seed: number): number[] {
    const random = new Random(seed, "cart pole");
    this.#state = [0, 1, 2, 3].map(() => random.uniform() * 0.1 - 0.05);
    this.#time = 0;
    return [...this.#state];
  }

  step(action: number): EnvironmentStep {
    const [gravity, poleMass, cartMass, halfLength, seconds] = [9.8, 0.1, 1, 0.5, 0.02];
    const [x, velocity, angle, spin] = this.#state as [number, number, number, number];
    const force = action === 1 ? 10 : -10;
    const [sine, cosine] = [Math.sin(angle), Math.cos(angle)];
    const mass = poleMass + cartMass;
    const pull = (force + poleMass * halfLength * spin * spin * sine) / mass;
    const spinRate =
      (gravity * sine - cosine * pull) / (halfLength * (4 / 3 - (poleMass * cosine * cosine) / mass));
    const acceleration = pull - (poleMass * halfLength * spinRate * cosine) / mass;
    this.#state = [
      x + seconds * velocity,
      velocity + seconds * acceleration,
      angle + seconds * spin,
      spin + seconds * spinRate,
    ];
    this.#time++;
    const [position, , tilt] = this.#state as [number, number, number, number];
    const terminated = Math.abs(position) > 2.4 || Math.abs(tilt) > (12 * Math.PI) / 180;
    return { observation: [...this.#state], reward: 1, terminated, truncated: this.#time >= 500 };
  }

  state(): unknown {
    return { state: this.#state, time: this.#time };
  }
  restore(saved: unknown): void {
    const { state, time } = saved as { state: number[]; time: number };
    this.#state = [...state];
    this.#time = time;
  }
}

/**
 * A pendulum to swing up and hold with a torque of ± 2, with the constants that Gymnasium documents for Pendulum-v1: g 10, mass and length 1,
 * steps of 0.05 s, 200 of them, reward −(angle² + 0.1·speed² + 0.001·torque²). No episode terminates.
 */
export class Pendulum implements ContinuousEnvironment {
  readonly actionKind = "continuous";
  readonly observationSize = 3;
  readonly actionSize = 1;
  #angle = 0;
  #speed = 0;
  #time = 0;

  reset(seed: number): number[] {
    const random = new Random(seed, "pendulum");
    this.#angle = (2 * random.uniform() - 1) * Math.PI;
    this.#speed = 2 * random.uniform() - 1;
    this.#time = 0;
    return this.#observation();
  }

  step(action: Float32Array): EnvironmentStep {
    const torque = Math.max(-2, Math.min(2, action[0] as number));
    const turns = (this.#angle + Math.PI) / (2 * Math.PI);
    const fromUpright = (turns - Math.floor(turns)) * 2 * Math.PI - Math.PI;
    const cost = fromUpright ** 2 + 0.1 * this.#speed ** 2 + 0.001 * torque ** 2;
    const speed = this.#speed + (15 * Math.sin(this.#angle) + 3 * torque) * 0.05;
    this.#speed = Math.max(-8, Math.min(8, speed));
    this.#angle += this.#speed * 0.05;
    this.#time++;
    return {
      observation: this.#observation(),
      reward: -cost,
      terminated: false,
      truncated: this.#time >= 200,
    };
  }

  #observation(): number[] {
    return [Math.cos(this.#angle), Math.sin(this.#angle), this.#speed];
  }
}
