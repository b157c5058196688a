import { messageOf, RlhfError } from "../errors.ts";
import { refuseUnknownOptions } from "../option-names.ts";
import {
  type AnswerToScore,
  type BatchRewardCallOptions,
  CALL_OPTIONS,
  CalledReward,
  CallFailure,
  stringify,
} from "./calls.ts";

export interface HttpRewardOptions extends BatchRewardCallOptions {
  /** Further headers; `${NAME}` in a value is replaced by the environment variable, so that secrets stay out of files. */
  readonly headers?: Readonly<Record<string, string>> | undefined;
}

const RETRIES = 4;
/** Statuses of requests that may succeed later. */
const isTemporary = (status: number): boolean => status === 408 || status === 429 || status >= 500;

function invalid(message: string): RlhfError {
  return new RlhfError("ERR_RLHF_ARGUMENT", `HttpReward: ${message}`);
}

/**
 * Rewards from a service. Batches of answers are posted as JSON, `{"answers": [{"prompt", "response", "finishReason", "messages"?,
 * "metadata"?}, …]}`, and `{"rewards": [number, …]}` is expected, in the same order. Time-outs, failed connections and the statuses
 * 408, 429 and 5xx are tried again, after `Retry-After` where the service says so; other statuses and malformed answers are not.
 */
export class HttpReward extends CalledReward {
  protected readonly what: string;
  readonly #url: URL;
  readonly #headers: Headers;

  /** Throws ERR_RLHF_ARGUMENT for a malformed address or header, or an environment variable that is not set. */
  constructor(url: string, options: HttpRewardOptions = {}) {
    refuseUnknownOptions("HttpReward", options, { ...CALL_OPTIONS, headers: true });
    const { headers = {}, ...calls } = options;
    super({ ...calls, retries: calls.retries ?? RETRIES });
    this.#url = parseUrl(url);
    // A query may hold a key.
    this.what = `the reward service ${this.#url.origin}${this.#url.pathname}`;
    this.#headers = expandHeaders(headers);
    this.#headers.set("content-type", "application/json");
    this.#headers.set("accept", "application/json");
  }

  protected async call(answers: readonly AnswerToScore[], signal: AbortSignal): Promise<ArrayLike<unknown>> {
    const body = stringify({
      answers: answers.map(({ row, response, finishReason }) => ({
        prompt: row.prompt,
        response,
        finishReason,
        messages: row.messages,
        metadata: row.metadata,
      })),
    });
    const request = { method: "POST", headers: this.#headers, body, signal, redirect: "manual" as const };
    const reply = await connected(fetch(this.#url, request));
    const text = await connected(reply.text());
    if (!reply.ok)
      throw new CallFailure(`status ${reply.status}: ${text.slice(0, 200)}`, {
        retryable: isTemporary(reply.status),
        retryAfterMs: retryAfter(reply.headers.get("retry-after")),
        details: { status: reply.status },
      });
    return parseRewards(text);
  }
}

function parseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (url === null || !["http:", "https:"].includes(url.protocol))
    throw invalid(`expected an address that begins with http:// or https://, got ${JSON.stringify(text)}`);
  if (url.username !== "" || url.password !== "")
    throw invalid(
      `the address holds a name or password; give them in headers, by environment variables: { Authorization: "Bearer $\{NAME}" }`,
    );
  return url;
}

function expandHeaders(headers: Readonly<Record<string, string>>): Headers {
  const result = new Headers();
  for (const [name, template] of Object.entries(headers)) {
    const value = template.replace(/\$\{(\w+)\}/g, (_, variable: string) => {
      const found = process.env[variable];
      if (found === undefined)
        throw invalid(`header ${name} needs the environment variable ${variable}, which is not set`);
      return found;
    });
    try {
      result.set(name, value);
    } catch {
      // The reason that Headers gives would show the value.
      throw invalid(
        `header ${JSON.stringify(name)} has a name or value with characters that headers cannot have`,
      );
    }
  }
  return result;
}

/** fetch() hides the reason of a failed connection in `cause`. */
async function connected<T>(result: Promise<T>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    throw new CallFailure(`no connection: ${messageOf(cause) || String(cause)}`, { retryable: true });
  }
}

/** Milliseconds that a Retry-After header in seconds asks for; dates are not waited for. */
function retryAfter(header: string | null): number {
  return header !== null && /^\d+$/.test(header) ? Number(header) * 1000 : 0;
}

function parseRewards(text: string): ArrayLike<unknown> {
  let rewards: unknown;
  try {
    rewards = (JSON.parse(text) as { rewards?: unknown } | null)?.rewards;
  } catch {
    rewards = undefined;
  }
  if (!Array.isArray(rewards))
    throw new CallFailure(`expected JSON {"rewards": [number, …]}, got ${text.slice(0, 200)}`, {
      retryable: false,
    });
  return rewards;
}
