/** What runs logged that is no number, side by side at one step: all such panels of a page are at the same one. */

import { post, useAnswer } from "../../api";
import { number } from "../../format";
import type { LoggedAnswer, LoggedSource } from "../../model";
import { place, set } from "../../router";
import { lastBefore } from "../reading";
import type { Source } from "../series";
import { Row } from "./row";

/** Of so many runs. */
export const MOST_SIDES = 12;
/** The name of a run above what it logged, and the line below each file, in pixels. */
const HEAD = 22;
const CAPTION = 26;

interface Props {
  name: string;
  source: LoggedSource;
  sources: readonly Source[];
  live: number;
  height: number;
}

export function Logged({ name, source, sources, live, height }: Props) {
  const sides = new Map(sources.map((one) => [one.item.run, one]));
  const runs = [...sides.keys()].slice(0, MOST_SIDES);
  const given = place.value.query.get("media");
  const at = given !== null && /^-?\d{1,15}$/.test(given) ? Number(given) : null;
  const body = { runs, name, source };
  const steps = useAnswer(JSON.stringify(["steps", body, live]), (signal) => post<number[]>("logged/steps", body, signal));
  const rows = useAnswer(JSON.stringify(["rows", body, at, live]), (signal) => post<LoggedAnswer[]>("logged", { ...body, at }, signal));
  const { data, error } = rows.value;
  const latest = Math.max(...(data ?? []).flatMap(({ step }) => step ?? []));
  return (
    <div class="logged">
      {error && <div class="tone-crit note">{error.message}</div>}
      <div class="shown" style={{ height: `${height}px` }} tabIndex={0} role="group" aria-label={`${name} of ${runs.length === 1 ? "the run" : `${runs.length} runs`}`}>
        {data?.map((answer) => (
          <Side key={answer.run} answer={answer} of={sides.get(answer.run)} alone={runs.length === 1} at={at} latest={latest} name={name} live={live} height={height} />
        ))}
      </div>
      <Slider name={name} steps={steps.value.data ?? []} at={at} />
      {sides.size > MOST_SIDES && <p class="quiet note">The first {MOST_SIDES} of {sides.size} runs.</p>}
    </div>
  );
}

interface SideProps {
  answer: LoggedAnswer;
  of: Source | undefined;
  alone: boolean;
  at: number | null;
  /** The step of the newest of all sides: what is older says so. */
  latest: number;
  name: string;
  live: number;
  height: number;
}

function Side({ answer, of, alone, at, latest, name, live, height }: SideProps) {
  const { run, step, n, rows } = answer;
  const ranks = new Set(rows.map((row) => row.rank)).size > 1;
  const room = (height - (alone ? 0 : HEAD) - 8) / (rows.length > 1 && rows[0]?.kind === "image" ? 2 : 1);
  return (
    <section class="side">
      {!alone && (
        <h3>
          <i class="swatch" style={{ background: of?.colour }} />
          <span title={of?.label}>{of?.label ?? run}</span>
          {step !== null && step !== latest && <small>step {number(step)}</small>}
        </h3>
      )}
      {step === null && <p class="quiet">{at === null ? "It has logged none." : `It had logged none by step ${number(at)}.`}</p>}
      <div class="tiles">
        {rows.map((row, i) => (
          <div key={i}>
            {ranks && <small class="quiet">rank {row.rank}</small>}
            <Row run={run} name={name} row={row} live={live} height={Math.max(64, Math.round(room) - CAPTION - (ranks ? 18 : 0))} />
          </div>
        ))}
      </div>
      {n > rows.length && <p class="quiet">The first {rows.length} of {number(n)} at this step.</p>}
    </section>
  );
}

/** The last step until somebody chooses one, so that what comes is followed. */
function Slider({ name, steps, at }: { name: string; steps: readonly number[]; at: number | null }) {
  const last = steps.length - 1;
  if (last < 0) return <div class="slider">&nbsp;</div>;
  const i = at === null ? last : lastBefore(steps, at);
  const choose = (to: number) => set({ media: to >= last ? undefined : String(steps[to]) }, { gradual: true });
  return (
    <label class="slider">
      {last > 0 && (
        <input
          type="range"
          min="0"
          max={last}
          value={i}
          aria-label={`step of ${name}`}
          aria-valuetext={`step ${number(steps[i])}`}
          onInput={(event) => choose(Number(event.currentTarget.value))}
        />
      )}
      <span>
        step {number(steps[i])} {last > 0 && <small class="quiet">{i + 1} of {number(steps.length)}</small>}
      </span>
    </label>
  );
}
