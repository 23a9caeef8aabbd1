/** Colours of data: eight that are told apart under every kind of colour blindness, and ramps of even lightness. */

import { theme } from "../state";

const SLOTS = 8;
const SEQUENTIAL = ["#131423", "#29255a", "#513188", "#8d3d94", "#cc4d78", "#f27346", "#ff9f41", "#fdcd74", "#fcf4be"];
const DIVERGING = ["#004a9c", "#3174bb", "#619dda", "#a6c6e9", "#eaeff5", "#f4ede8", "#ebbb95", "#dd8736", "#b85b1a", "#923002"];
const DIVERGING_DARK = ["#a6c6e9", "#619dda", "#3174bb", "#0f3f73", "#1b2027", "#241f1b", "#6b3410", "#b85b1a", "#dd8736", "#ebbb95"];

/** Tokens as they were read, for each theme: asking the browser costs a look at all styles. */
const read = new Map<string, string>();

/** The value of a token, in the theme that is on. */
export function token(name: string): string {
  const key = `${theme.value} ${name}`;
  const known = read.get(key);
  if (known !== undefined) return known;
  const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  if (value) read.set(key, value);
  return value;
}

/** A slot for each run, the same for the same run as far as no other took it. */
export function slots(runs: readonly string[]): Map<string, number> {
  const taken = new Set<number>();
  const found = new Map<string, number>();
  for (const run of runs) {
    let slot = hash(run) % SLOTS;
    while (taken.size < SLOTS && taken.has(slot)) slot = (slot + 1) % SLOTS;
    taken.add(slot);
    found.set(run, slot);
  }
  return found;
}

/** The colour of a slot. */
export function colour(slot: number): string {
  return token(`data-${(slot % SLOTS) + 1}`);
}

function hash(text: string): number {
  let value = 2166136261;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 16777619) >>> 0;
  return value;
}

/** 256 colours as little-endian RGBA, for a canvas. */
export function ramp(kind: "sequential" | "diverging"): Uint32Array {
  const dark = theme.value === "dark";
  const stops = kind === "diverging" ? (dark ? DIVERGING_DARK : DIVERGING) : dark ? SEQUENTIAL : SEQUENTIAL.toReversed();
  const parsed = stops.map((stop) => [1, 3, 5].map((at) => Number.parseInt(stop.slice(at, at + 2), 16)));
  const colours = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (parsed.length - 1);
    const low = Math.min(Math.floor(at), parsed.length - 2);
    const part = at - low;
    const [r = 0, g = 0, b = 0] = [0, 1, 2].map((channel) =>
      Math.round((parsed[low]?.[channel] ?? 0) * (1 - part) + (parsed[low + 1]?.[channel] ?? 0) * part),
    );
    colours[i] = rgba(r, g, b);
  }
  return colours;
}

/** A colour of the sequential ramp, from 0 to 1, as CSS; its two ends are too near to the ground to be lines. */
export function shade(share: number): string {
  const value = ramp("sequential")[Math.round(40 + 170 * Math.max(0, Math.min(1, share)))] ?? 0;
  return `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
}

/** One colour of a token or of hex digits, as `ramp` gives them. */
export function pixel(hex: string): number {
  return rgba(...([1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16)) as [number, number, number]));
}

function rgba(r: number, g: number, b: number): number {
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}
