/** State and severity: a shape and a word, never a colour alone. */

import type { Severity, State } from "../model";

const STATES: Record<State, [string, string]> = {
  running: ["●", "accent"],
  finished: ["✓", "ok"],
  failed: ["✕", "crit"],
  killed: ["■", "warn"],
  crashed: ["✕", "crit"],
  lost: ["?", "warn"],
};

const SEVERITIES: Record<Severity, [string, string]> = {
  critical: ["▲", "crit"],
  warning: ["◆", "warn"],
  info: ["○", "ink3"],
};

export function StateMark({ state }: { state: State }) {
  const [sign, tone] = STATES[state] ?? ["?", "ink3"];
  return (
    <span class={`state tone-${tone}`}>
      <span aria-hidden="true" class={state === "running" ? "sign alive" : "sign"}>
        {sign}
      </span>
      {state}
    </span>
  );
}

export function SeverityMark({ severity, word = false }: { severity: Severity; word?: boolean }) {
  const [sign, tone] = SEVERITIES[severity];
  return (
    <span class={`tone-${tone}`} title={severity}>
      <span aria-hidden="true">{sign}</span>
      <span class={word ? "" : "unseen"}> {severity}</span>
    </span>
  );
}

/** What torchtrack is known by. */
export function Logo() {
  return (
    <svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true">
      <path d="M2 12 6 6.5l2.6 2.6L14 3.5" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  );
}
