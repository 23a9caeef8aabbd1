/** Every metric of one run, of all ranks together or each. */

import type { Signal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { type Range, whole } from "../charts/axes";
import { inFile } from "../embedded";
import type { RunAnswer } from "../model";
import { place, set } from "../router";
import { news, theme } from "../state";
import { LookBar } from "./look";
import { Panels } from "./panels";
import { sourcesOf } from "./series";

interface Props {
  run: RunAnswer;
  range: Signal<Range>;
  /** Which metrics are meant. */
  of: (name: string) => boolean;
}

export function Charts({ run, range, of }: Props) {
  const ranks = place.value.query.get("ranks") ?? "mean";
  const live = run.state === "running" ? news.value : 0;
  const sources = useMemo(() => sourcesOf(run, ranks), [run.uid, run.world_size, ranks, theme.value]);
  return (
    <>
      <div class="bar">
        <LookBar range={range} all={whole(run.last_step)} metrics={run.keys.filter((name) => !/^_tt\//.test(name))} defined={Object.values(run.definitions).some((said) => said.step_metric)} />
        {run.world_size > 1 && !inFile && (
          <label>
            Ranks
            <select value={ranks} onChange={(event) => set({ ranks: event.currentTarget.value })}>
              <option value="mean">combined</option>
              <option value="all">each</option>
              <option value="band">mean and band</option>
            </select>
          </label>
        )}
      </div>
      <Panels
        metrics={run.keys.filter((name) => of(name) && !run.definitions[name]?.hidden)}
        along={(name) => run.definitions[name]?.step_metric}
        logged={(name) => of(name) && !run.definitions[name]?.hidden}
        sources={sources}
        range={range}
        all={whole(run.last_step)}
        live={live}
        syncKey={run.uid}
      />
    </>
  );
}
