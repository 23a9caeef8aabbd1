/** What the rules found: above the panels where it was, beside them what it says. */

import type { Signal } from "@preact/signals";
import { GUTTER, type Range, RIGHT, whole } from "../../charts/axes";
import { number } from "../../format";
import type { Finding, RunAnswer } from "../../model";
import { SeverityMark } from "../../ui/marks";

const GRAVITY = { critical: 0, warning: 1, info: 2 };
const MOST_NAMES = 3;

/** The gravest first, of those the earliest. */
export function graveFirst(findings: readonly Finding[]): Finding[] {
  return findings.toSorted((a, b) => GRAVITY[a.severity] - GRAVITY[b.severity] || a.first_step - b.first_step);
}

/** A finding and as much again on both sides. */
export function round({ first_step, last_step }: Finding): Range {
  return around(first_step, last_step ?? first_step);
}

/** Some steps and as much again on both sides. */
export function around(first: number, last: number): Range {
  const room = Math.max(20, last - first);
  return [Math.max(0, first - room), last + room];
}

function when({ first_step, last_step }: Finding): string {
  if (last_step === null) return `since step ${number(first_step)}`;
  return last_step === first_step ? `step ${number(first_step)}` : `steps ${number(first_step)} to ${number(last_step)}`;
}

export function title({ rule }: Finding): string {
  return rule.replaceAll("_", " ");
}

/** Which layers, which ranks: before any sentence. */
export function Where({ finding: { names, ranks } }: { finding: Finding }) {
  return (
    <>
      {names.slice(0, MOST_NAMES).map((name) => (
        <code class="chip" key={name}>{name}</code>
      ))}
      {names.length > MOST_NAMES && <span class="chip">+{names.length - MOST_NAMES}</span>}
      {ranks.length > 0 && <span class="chip">{ranks.length === 1 ? `rank ${ranks[0]}` : `ranks ${ranks.slice(0, 8).join(", ")}${ranks.length > 8 ? " …" : ""}`}</span>}
    </>
  );
}

export function List({ findings, chosen, onChoose }: { findings: Finding[]; chosen: number; onChoose: (i: number) => void }) {
  return (
    <ol>
      {findings.map((finding, i) => (
        <li key={i} class={i === chosen ? "chosen" : ""}>
          <button type="button" onClick={() => onChoose(i)}>
            <SeverityMark severity={finding.severity} /> <strong>{title(finding)}</strong>
            <span class="quiet"> {when(finding)}</span>
            <div class="where">
              <Where finding={finding} />
            </div>
            <p>{finding.why}</p>
            <p class="quiet">{finding.look_at}</p>
          </button>
        </li>
      ))}
    </ol>
  );
}

interface LaneProps {
  findings: Finding[];
  range: Signal<Range>;
  run: RunAnswer;
  onChoose: (i: number) => void;
  chosen: number;
}

/** Every finding where it was: the index of the run. */
export function Lane({ findings, range, run, onChoose, chosen }: LaneProps) {
  const [low, high] = range.value ?? whole(run.last_step);
  return (
    <div class="lane" role="group" style={{ marginLeft: `${GUTTER}px`, marginRight: `${RIGHT}px` }} aria-label="findings over steps">
      {findings.map((finding, i) => {
        const share = (finding.first_step - low) / (high - low);
        return share >= 0 && share <= 1 ? (
          <button type="button" key={i} style={{ left: `${share * 100}%` }} class={i === chosen ? "chosen" : ""} title={`${title(finding)}: ${finding.why}`} onClick={() => onChoose(i)}>
            <SeverityMark severity={finding.severity} />
          </button>
        ) : null;
      })}
    </div>
  );
}
