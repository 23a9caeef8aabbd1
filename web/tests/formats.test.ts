import { expect, test, vi } from "vitest";

vi.mock("../src/state", () => ({ theme: { value: "light" } }));

const { BUCKETS, edge, fractions } = await import("../src/charts/buckets");
const { bucketOf, FORMATS, guides, lost, reach } = await import("../src/charts/formats");
const [fp16, bf16, e4m3] = [FORMATS["fp16"]!, FORMATS["bf16"]!, FORMATS["e4m3"]!];
const NEGATIVE = (bucket: number) => 326 - bucket;

function counts(of: Record<number, number>): Float64Array {
  const all = new Float64Array(BUCKETS);
  for (const [bucket, count] of Object.entries(of)) all[Number(bucket)] = count;
  return all;
}

test("a magnitude lies in the bucket whose edges are around it", () => {
  for (const value of [2 ** -24, 1, 1.4, 1.5, 448, 65504]) {
    const bucket = bucketOf(value);
    expect(edge(bucket)).toBeLessThanOrEqual(value);
    expect(edge(bucket + 1)).toBeGreaterThan(value);
  }
  expect(bucketOf(2 ** 127)).toBe(324);
  expect(bucketOf(2 ** -133)).toBe(165);
});

test("limits stand at their values on both sides of zero, with words on one", () => {
  const buckets = fractions(counts({ [bucketOf(1024)]: 1, [NEGATIVE(bucketOf(1024))]: 1, [bucketOf(2 ** -12)]: 1 }), [0], 1).buckets;
  const found = guides("e4m3", e4m3, buckets);
  expect(found.map(({ text }) => text)).toEqual(["e4m3 largest 448", "", "e4m3 smallest normal 0.01563", "", "e4m3 smallest subnormal 0.001953", ""]);
  const [largest, mirrored, normal] = found;
  expect((largest?.row ?? 0) + (mirrored?.row ?? 0)).toBeCloseTo(buckets.length);
  expect(buckets[Math.floor(largest?.row ?? 0)]).toBe(bucketOf(448));
  expect(normal?.row).toBe(buckets.indexOf(bucketOf(2 ** -6)) + 1);
});

test("limits beyond all buckets or out of sight are not drawn", () => {
  expect(guides("bf16", bf16, [170, 169, 168])).toEqual([]);
  expect(guides("e4m3", e4m3, [170, 169, 168])).toEqual([]);
});

test("a format that is chosen is in sight as a whole, for both signs", () => {
  const { buckets } = fractions(counts({ [bucketOf(1)]: 1 }), [0], 1, reach(fp16));
  expect([buckets[0], buckets.at(-1)]).toEqual([bucketOf(65504), NEGATIVE(bucketOf(65504))]);
  expect(guides("fp16", fp16, buckets)).toHaveLength(6);
});

test("what would be lost is counted of what is finite and not zero, at least", () => {
  const tiny = bucketOf(2 ** -30);
  const all = counts({ 163: 1000, 327: 50, 0: 50, 164: 1, [tiny]: 1, [NEGATIVE(tiny)]: 2, [bucketOf(2 ** -16)]: 4, [bucketOf(1)]: 8, [bucketOf(65504)]: 1, [NEGATIVE(bucketOf(2 ** 17))]: 3 });
  expect(lost(all, fp16)).toEqual({ below: 4 / 20, subnormal: 4 / 20, above: 3 / 20 });
  expect(lost(all, bf16)).toEqual({ below: 0, subnormal: 0, above: 0 });
  expect(lost(counts({ 163: 5 }), fp16)).toBeNull();
});
