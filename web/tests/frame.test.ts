import { expect, test } from "vitest";
import { decode, decodeAll } from "../src/frame";

function framed(columns: [string, string, ArrayBufferView<ArrayBuffer>, number][]): ArrayBuffer {
  const text = JSON.stringify({ bucket: 4, columns: columns.map(([name, dtype, , n]) => ({ name, dtype, n })) });
  const header = new TextEncoder().encode(text + " ".repeat((12 - (text.length % 8)) % 8));
  const parts: Uint8Array[] = [new Uint8Array(new Uint32Array([header.length]).buffer), header];
  for (const [, , values] of columns) {
    const padded = new Uint8Array(Math.ceil(values.byteLength / 8) * 8);
    padded.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    parts.push(padded);
  }
  const bytes = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes.buffer;
}

test("columns of a frame are typed arrays on its own memory", () => {
  const buffer = framed([
    ["max.0", "f4", new Float32Array([1.5, Number.NaN, 3]), 3],
    ["x", "f8", new Float64Array([0, 4]), 2],
    ["flags", "u1", new Uint8Array([1, 0, 2]), 3],
  ]);

  const frame = decode<{ bucket: number }>(buffer);

  expect(frame.header.bucket).toBe(4);
  expect(frame.columns.get("max.0")).toEqual(new Float32Array([1.5, Number.NaN, 3]));
  expect(frame.columns.get("x")).toEqual(new Float64Array([0, 4]));
  expect(frame.columns.get("flags")).toEqual(new Uint8Array([1, 0, 2]));
  expect(frame.columns.get("x")?.buffer).toBe(buffer);
});

test("64-bit counts are exact numbers", () => {
  const buffer = framed([["counts", "u8", new BigUint64Array([3n, 2n ** 40n + 5n]), 2]]);
  expect(decode(buffer).columns.get("counts")).toEqual(new Float64Array([3, 2 ** 40 + 5]));
});

test("frames that follow each other are taken apart on the same memory", () => {
  const parts = [[1, 2, 3], [4]].map((values) => framed([["x", "f8", new Float64Array(values), values.length]]));
  const both = new Uint8Array(parts.reduce((size, part) => size + part.byteLength, 0));
  both.set(new Uint8Array(parts[0] ?? []), 0);
  both.set(new Uint8Array(parts[1] ?? []), parts[0]?.byteLength);

  const frames = decodeAll(both.buffer);

  expect(frames.map(({ columns }) => [...(columns.get("x") ?? [])])).toEqual([[1, 2, 3], [4]]);
  expect(frames[1]?.columns.get("x")?.buffer).toBe(both.buffer);
  expect(decodeAll(new ArrayBuffer(0))).toEqual([]);
});
