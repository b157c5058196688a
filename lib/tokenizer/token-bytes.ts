import { RlhfError } from "../errors.ts";
import type { BackendTokenizer, TokenizerJson } from "./backend.ts";

/** The text of every token as UTF-8 bytes, which need not be whole characters. */
export interface TokenBytes {
  /** Uint8Array: of all tokens in order. */
  readonly bytes: Uint8Array;
  /** Int32Array[V + 1]: token t's are [offsets[t], offsets[t + 1]). Special tokens have none. */
  readonly offsets: Int32Array;
}

interface Decoder {
  readonly type?: string;
  readonly decoders?: readonly Decoder[];
  readonly pattern?: { readonly String?: string };
  readonly content?: string;
  readonly replacement?: string;
}

type ToBytes = (content: string) => Uint8Array;

/** GPT-2's printable stand-ins for the 256 byte values: bytes that print stand for themselves, the others follow from U+0100. */
export function byteAlphabet(): string[] {
  const prints = (byte: number): boolean =>
    (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(prints(byte) ? byte : next++));
}

/**
 * The bytes of all tokens, by the tokenizer's decoder. Throws ERR_RLHF_UNSUPPORTED for decoders that make text of tokens in other
 * ways than byte by byte.
 */
export function tokenBytes(json: TokenizerJson, backend: BackendTokenizer, vocabSize: number): TokenBytes {
  const toBytes = decoderBytes((json as { readonly decoder?: Decoder | null }).decoder ?? null);
  const added = new Map((json.added_tokens ?? []).map((token) => [token.id, token]));
  const encoder = new TextEncoder();
  const parts = Array.from({ length: vocabSize }, (_, id): Uint8Array => {
    const token = added.get(id);
    if (token) return encoder.encode(token.special ? "" : token.content);
    const content = backend.id_to_token(id);
    return content === undefined ? new Uint8Array(0) : toBytes(content);
  });
  const offsets = new Int32Array(vocabSize + 1);
  parts.forEach((part, id) => {
    offsets[id + 1] = (offsets[id] as number) + part.length;
  });
  const bytes = new Uint8Array(offsets[vocabSize] as number);
  parts.forEach((part, id) => {
    bytes.set(part, offsets[id]);
  });
  return { bytes, offsets };
}

function decoderBytes(decoder: Decoder | null): ToBytes {
  const steps = decoder?.type === "Sequence" ? (decoder.decoders ?? []) : decoder ? [decoder] : [];
  const types = steps.map((step) => step.type);
  if (types.length === 1 && types[0] === "ByteLevel") return byteLevelBytes();
  const known = ["Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"];
  const replaces = steps.filter((step) => step.type === "Replace" || step.type === "Metaspace");
  const isKnown = types.every((type) => known.includes(type ?? ""));
  if (!isKnown || replaces.length === 0 || replaces.some((step) => replacement(step) === null))
    throw new RlhfError(
      "ERR_RLHF_UNSUPPORTED",
      `stopStrings: the tokenizer's decoder (${types.join(", ") || "none"}) is not one whose tokens have bytes: byte-level, or spaces written as ▁; end answers by tokens (stop)`,
      { decoder: types },
    );
  const encoder = new TextEncoder();
  const fallback = types.includes("ByteFallback");
  return (content) => {
    const byte = fallback ? /^<0x([0-9A-Fa-f]{2})>$/.exec(content) : null;
    if (byte) return Uint8Array.of(Number.parseInt(byte[1] as string, 16));
    const text = replaces.reduce((before, step) => {
      const [from, to] = replacement(step) as readonly [string, string];
      return before.replaceAll(from, to);
    }, content);
    return encoder.encode(text);
  };
}

/** What a step puts in place of what; null for patterns that are regular expressions. */
function replacement(step: Decoder): readonly [string, string] | null {
  if (step.type === "Metaspace") return [step.replacement ?? "▁", " "];
  return step.pattern?.String === undefined ? null : [step.pattern.String, step.content ?? ""];
}

function byteLevelBytes(): ToBytes {
  const encoder = new TextEncoder();
  const byteOf = new Map(byteAlphabet().map((character, byte) => [character.charCodeAt(0), byte]));
  return (content) => {
    const bytes = new Uint8Array(content.length);
    for (let i = 0; i < content.length; i++) {
      const byte = byteOf.get(content.charCodeAt(i));
      if (byte === undefined) return encoder.encode(content);
      bytes[i] = byte;
    }
    return bytes;
  };
}
