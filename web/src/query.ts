/** What a panel shows beside its data: the address says it, or, where a panel is pinned, the report it stands in. */

import { createContext } from "preact";
import { useContext } from "preact/hooks";
import { place, set } from "./router";

export const Pinned = createContext<URLSearchParams | null>(null);

interface Query {
  query: URLSearchParams;
  /** Nothing of it can be chosen here. */
  pinned: boolean;
  set: typeof set;
}

export function useQuery(): Query {
  const pinned = useContext(Pinned);
  return pinned ? { query: pinned, pinned: true, set: () => {} } : { query: place.value.query, pinned: false, set };
}
