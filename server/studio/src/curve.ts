/** The loudness curve: linear RMS, a hundred values a second, with everything that was done to it. */

const HISTORY = 200;

export interface Region { from: number; to: number } // frames, `to` excluded

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

  /** Remember what is there now; call before a change. */
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

  /** A straight line from one point to the next: how a pen draws. */
  line(fromFrame: number, fromValue: number, toFrame: number, toValue: number): void {
    const [a, b] = fromFrame <= toFrame ? [fromFrame, toFrame] : [toFrame, fromFrame];
    for (let frame = Math.max(0, a); frame <= Math.min(this.length - 1, b); frame++) {
      const share = fromFrame === toFrame ? 1 : (frame - fromFrame) / (toFrame - fromFrame);
      this.values[frame] = clamp(fromValue + share * (toValue - fromValue));
    }
  }

  /**
   * Drag the point at frame `at`, as it was in `before`, to another frame and value. What lies between it and the points
   * on either side goes along, with all of its detail.
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

  /** Take back what was begun with `remember`, as if it had never been. */
  forget(): void { this.values = this.past.pop() ?? this.values; }

  change(region: Region, value: (frame: number, values: Float32Array) => number): void {
    this.remember();
    const before = this.values.slice();
    for (let frame = region.from; frame < region.to; frame++) this.values[frame] = clamp(value(frame, before));
  }

  scale(region: Region, by: number): void { this.change(region, (frame, values) => values[frame]! * by); }
  mute(region: Region): void { this.change(region, () => 0); }

  /** Below `share` of the region's loudest there is silence. */
  gate(region: Region, share = 0.1): void {
    const floor = share * loudest(this.values.subarray(region.from, region.to));
    this.change(region, (frame, values) => (values[frame]! < floor ? 0 : values[frame]!));
  }

  /** A mean over `reach` frames either way. */
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

  /** Later by so many frames, earlier where it is negative; what leaves the region is lost. */
  shift(region: Region, by: number): void {
    this.change(region, (frame, values) => {
      const source = frame - by;
      return source >= region.from && source < region.to ? values[source]! : 0;
    });
  }

  /** The paper's shapes, over the region: A, V, rising, falling. */
  shape(region: Region, kind: "A" | "V" | "rising" | "falling", peak: number): void {
    const last = Math.max(1, region.to - region.from - 1);
    this.change(region, (frame) => {
      const x = (frame - region.from) / last;
      const height = { A: 1 - Math.abs(2 * x - 1), V: Math.abs(2 * x - 1), rising: x, falling: 1 - x }[kind];
      return peak * height;
    });
  }

  /** Other values in the region, from its start on; silence where they end before it does. */
  replace(values: ArrayLike<number>, region: Region = { from: 0, to: this.length }): void {
    this.change(region, (frame) => values[frame - region.from] ?? 0);
  }

  reset(region: Region): void { this.change(region, (frame) => this.predicted[frame]!); }
}

export function clamp(value: number): number { return Math.min(1, Math.max(0, Number.isFinite(value) ? value : 0)); }

/** The largest of any number of values. */
export function loudest(values: ArrayLike<number>): number {
  let found = 0;
  for (let i = 0; i < values.length; i++) found = Math.max(found, values[i]!);
  return found;
}

function between(values: Float32Array, position: number): number {
  const frame = Math.min(values.length - 1, Math.floor(position)), next = Math.min(values.length - 1, frame + 1);
  return values[frame]! + (position - frame) * (values[next]! - values[frame]!);
}

/** The frames at which straight lines between them stay within `tolerance` of the curve (Ramer, Douglas and Peucker). */
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

/** Frames at which the curve rises fastest, each at least 50 ms after the one before: where something is hit. */
export function onsets(values: Float32Array): number[] {
  const least = 0.06 * Math.max(loudest(values), 1e-6), found: number[] = [];
  for (let frame = 1; frame < values.length - 1; frame++) {
    const rise = values[frame]! - values[frame - 1]!;
    if (rise > least && rise >= values[frame + 1]! - values[frame]! && frame - (found.at(-1) ?? -9) >= 5) found.push(frame);
  }
  return found;
}
