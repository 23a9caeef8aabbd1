import { beforeEach, describe, expect, test, vi } from "vitest";

const frame = vi.fn();
const frames = vi.fn();
vi.mock("../src/api", () => ({ frame, frames }));
vi.mock("../src/embedded", () => ({ inFile: false }));
vi.mock("../src/state", () => ({ theme: { value: "light" } }));
vi.stubGlobal("document", {});
vi.stubGlobal("getComputedStyle", () => ({ getPropertyValue: (name: string) => name }));

const { comparedBy, curves, packed, sourcesOf } = await import("../src/pages/series");

const answer = (name: string) => ({ header: { items: [{ run: "a", metric: name }], bucket: 1, raw: true }, columns: new Map() });
const body = (metric: string, lines = 1) => ({ items: Array.from({ length: lines }, () => ({ run: "a", metric })), x: { from: null, to: null }, px: 100, smooth: null });
const wanted = () => new AbortController().signal;

describe("charts that ask in the same moment", () => {
  beforeEach(() => {
    frame.mockReset().mockImplementation(async (_, { items }) => answer(items[0].metric));
    frames.mockReset().mockImplementation(async (_, { charts }) => charts.map(({ items }: { items: { metric: string }[] }) => answer(items[0]?.metric ?? "")));
  });

  test("are one question, and each has its answer", async () => {
    const found = await Promise.all(["loss", "lr", "speed"].map((name) => curves(body(name), wanted())));
    expect(found.map(({ items }) => items[0]?.metric)).toEqual(["loss", "lr", "speed"]);
    expect(frames).toHaveBeenCalledTimes(1);
    expect(frame).not.toHaveBeenCalled();
  });

  test("that nobody waits for any more are not asked for", async () => {
    const gone = new AbortController();
    void curves(body("gone"), gone.signal);
    gone.abort();
    await curves(body("loss"), wanted());
    expect(frame).toHaveBeenCalledTimes(1);
    expect(frames).not.toHaveBeenCalled();
  });

  test("are let go together only once nobody waits for any of them", async () => {
    const [one, other] = [new AbortController(), new AbortController()];
    frames.mockImplementation(() => new Promise(() => {}));
    void curves(body("loss"), one.signal);
    void curves(body("lr"), other.signal);
    await new Promise((resolve) => setTimeout(resolve));
    const signal = frames.mock.calls[0]?.[2] as AbortSignal;
    one.abort();
    expect(signal.aborted).toBe(false);
    other.abort();
    expect(signal.aborted).toBe(true);
  });

  test("all hear what went wrong", async () => {
    frames.mockRejectedValue(new Error("no such run"));
    const found = await Promise.allSettled(["loss", "lr"].map((name) => curves(body(name), wanted())));
    expect(found.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  });

  test("are several questions where they are many lines", async () => {
    await Promise.all([150, 80, 50, 1000].map((lines, i) => curves(body(`m${i}`, lines), wanted())));
    expect(frames).toHaveBeenCalledTimes(1);
    expect(frame).toHaveBeenCalledTimes(2);
  });
});

test("things are packed in their order", () => {
  expect(packed([3, 4, 3, 9, 1, 1], (n) => n, 10)).toEqual([[3, 4, 3], [9, 1], [1]]);
  expect(packed([20, 1], (n) => n, 10)).toEqual([[20], [1]]);
});

test("ranks are compared by their own gradients, and by the loss where nobody saw these", () => {
  expect(comparedBy(["loss", "watch/local_grad_norm"])).toBe("watch/local_grad_norm");
  expect(comparedBy(["lr", "val_loss", "loss"])).toBe("loss");
  expect(comparedBy(["lr"])).toBe("watch/local_grad_norm");
});

test("a run has one colour, as a line and as the band of its ranks", () => {
  for (const uid of ["f9f7e040136d8b40", "00000000000000aa", "3a459993dd275347"]) {
    const run = { uid, name: "one", world_size: 2 };
    const [combined] = sourcesOf(run, "mean");
    expect(sourcesOf(run, "band").map(({ colour }) => colour)).toEqual([combined?.colour, combined?.colour]);
    expect(new Set(sourcesOf(run, "all").map(({ colour }) => colour)).size).toBe(2);
  }
});
