/** The loudness curve: linear RMS at 100 Hz, with its undo history. */

const HISTORY = 200;

export interface Region { from: number; to: number } // frames; `to` is exclusive

export class Curve {
  values: Float32Array;
  readonly predicted: Float32Array;
  private past: Float32Array[] = [];
  private future: Float32Array[] = [];

  constructor(predicted: ArrayLike<number>) {
    this.predicted = Float32Array.from(predicted);
    this.values = this.predicted.slice();
  }

  get length(): number { return this.values.length; }
  get canUndo(): boolean { return this.past.length > 0; }
  get canRedo(): boolean { return this.future.length > 0; }

  /** Pushes the current values to the undo history; call it before a change. */
  remember(): void {
    this.past.push(this.values.slice());
    if (this.past.length > HISTORY) this.past.shift();
    this.future = [];
  }

  undo(): void { this.swap(this.past, this.future); }
  redo(): void { this.swap(this.future, this.past); }

  private swap(from: Float32Array[], to: Float32Array[]): void {
    const values = from.pop();
    if (!values) return;
    to.push(this.values);
    this.values = values;
  }

  /** Sets the values on a straight line between two points, as for a pen stroke. */
  line(fromFrame: number, fromValue: number, toFrame: number, toValue: number): void {
    const [a, b] = fromFrame <= toFrame ? [fromFrame, toFrame] : [toFrame, fromFrame];
    for (let frame = Math.max(0, a); frame <= Math.min(this.length - 1, b); frame++) {
      const share = fromFrame === toFrame ? 1 : (frame - fromFrame) / (toFrame - fromFrame);
      this.values[frame] = clamp(fromValue + share * (toValue - fromValue));
    }
  }

  /**
   * Moves the point at frame `at` of `before` to another frame and value. The values up to the neighbouring points `left`
   * and `right` are stretched and raised along with it, which keeps their detail.
   */
  bend(before: Float32Array, [left, at, right]: [number, number, number], to: number, value: number): void {
    const lift = value - before[at]!;
    this.values.set(before);
    for (let frame = left; frame <= right; frame++) {
      const share = frame === to ? 1 : frame < to ? (frame - left) / (to - left) : (right - frame) / (right - to);
      const source = frame <= to ? left + share * (at - left) : right - share * (right - at);
      this.values[frame] = clamp(between(before, source) + share * lift);
    }
  }

  /** Reverts to the last `remember`, and removes it from the undo history. */
  forget(): void { this.values = this.past.pop() ?? this.values; }

  change(region: Region, value: (frame: number, values: Float32Array) => number): void {
    this.remember();
    const before = this.values.slice();
    for (let frame = region.from; frame < region.to; frame++) this.values[frame] = clamp(value(frame, before));
  }

  scale(region: Region, by: number): void { this.change(region, (frame, values) => values[frame]! * by); }
  mute(region: Region): void { this.change(region, () => 0); }

  /** Sets values below `share` of the region's maximum to 0. */
  gate(region: Region, share = 0.1): void {
    const floor = share * loudest(this.values.subarray(region.from, region.to));
    this.change(region, (frame, values) => (values[frame]! < floor ? 0 : values[frame]!));
  }

  /** Applies a moving average over `reach` frames on either side. */
  smooth(region: Region, reach = 4): void {
    this.change(region, (frame, values) => {
      let sum = 0, count = 0;
      for (let i = Math.max(0, frame - reach); i <= Math.min(values.length - 1, frame + reach); i++) {
        sum += values[i]!;
        count++;
      }
      return sum / count;
    });
  }

  /** Delays the region by a number of frames, or advances it if negative; values shifted out of the region are lost. */
  shift(region: Region, by: number): void {
    this.change(region, (frame, values) => {
      const source = frame - by;
      return source >= region.from && source < region.to ? values[source]! : 0;
    });
  }

  /** Fills the region with one of the paper's shapes: A, V, rising, falling. */
  shape(region: Region, kind: "A" | "V" | "rising" | "falling", peak: number): void {
    const last = Math.max(1, region.to - region.from - 1);
    this.change(region, (frame) => {
      const x = (frame - region.from) / last;
      const height = { A: 1 - Math.abs(2 * x - 1), V: Math.abs(2 * x - 1), rising: x, falling: 1 - x }[kind];
      return peak * height;
    });
  }

  /** Replaces the values of the region, from its start; 0 after the end of `values`. */
  replace(values: ArrayLike<number>, region: Region = { from: 0, to: this.length }): void {
    this.change(region, (frame) => values[frame - region.from] ?? 0);
  }

  reset(region: Region): void { this.change(region, (frame) => this.predicted[frame]!); }
}

export function clamp(value: number): number { return Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0)); }

/** Returns the maximum; unlike `Math.max(...values)`, for any number of values. */
export function loudest(values: ArrayLike<number>): number {
  let found = 0;
  for (let i = 0; i < values.length; i++) found = Math.max(found, values[i]!);
  return found;
}

function between(values: Float32Array, position: number): number {
  const frame = Math.min(values.length - 1, Math.floor(position)), next = Math.min(values.length - 1, frame + 1);
  return values[frame]! + (position - frame) * (values[next]! - values[frame]!);
}

/** Returns the frames of a polyline that stays within `tolerance` of the curve (Ramer-Douglas-Peucker). */
export function corners(values: Float32Array, tolerance: number): number[] {
  const keep = new Set([0, values.length - 1]), open: [number, number][] = [[0, values.length - 1]];
  while (open.length) {
    const [from, to] = open.pop()!;
    let worst = from, most = tolerance;
    for (let frame = from + 1; frame < to; frame++) {
      const line = values[from]! + ((frame - from) / (to - from)) * (values[to]! - values[from]!);
      const off = Math.abs(values[frame]! - line);
      if (off > most) { most = off; worst = frame; }
    }
    if (worst === from) continue;
    keep.add(worst);
    open.push([from, worst], [worst, to]);
  }
  return [...keep].sort((a, b) => a - b);
}

/** Returns the onsets: local maxima of the curve's slope, at least 50 ms apart. */
export function onsets(values: Float32Array): number[] {
  const least = 0.06 * Math.max(loudest(values), 1e-6), found: number[] = [];
  for (let frame = 1; frame < values.length - 1; frame++) {
    const rise = values[frame]! - values[frame - 1]!;
    if (rise > least && rise >= values[frame + 1]! - values[frame]! && frame - (found.at(-1) ?? -9) >= 5) found.push(frame);
  }
  return found;
}
