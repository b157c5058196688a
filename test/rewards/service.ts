import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** What HttpReward posts. */
export interface Asked {
  readonly answers: readonly {
    readonly prompt: string;
    readonly response: string;
    readonly finishReason: string;
    readonly metadata?: Readonly<Record<string, unknown>>;
  }[];
}

export type Handler = (asked: Asked, response: ServerResponse, request: IncomingMessage) => void;

export const reply = (response: ServerResponse, status: number, body: string, headers = {}): void => {
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(body);
};
/** Scores each answer by its length. */
export const byLength: Handler = (asked, response) =>
  reply(response, 200, JSON.stringify({ rewards: asked.answers.map((answer) => answer.response.length) }));

/** Runs with the address of a service on this machine. */
export async function withService(handle: Handler, body: (url: string) => Promise<void>): Promise<void> {
  const server = createServer((request, response) => {
    const parts: Buffer[] = [];
    request.on("data", (part: Buffer) => parts.push(part));
    request.on("end", () => handle(JSON.parse(Buffer.concat(parts).toString()) as Asked, response, request));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await body(`http://127.0.0.1:${(server.address() as AddressInfo).port}/score`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}
