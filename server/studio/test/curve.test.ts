/** What a hand does to a curve, for any curve. */

import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Curve, corners, onsets } from "../src/curve";

const values = fc.array(fc.float({ min: 0, max: 1, noNaN: true }), { minLength: 2, maxLength: 300 });
const region = (length: number): fc.Arbitrary<{ from: number; to: number }> =>
  fc.tuple(fc.nat(length - 1), fc.nat(length - 1)).map(([a, b]) => ({ from: Math.min(a, b), to: Math.max(a, b) + 1 }));
const withRegion = values.chain((all) => fc.tuple(fc.constant(all), region(all.length)));
const near = (a: number, b: number, by = 1e-5): void => assert.ok(Math.abs(a - b) <= by, `${a} is not ${b}`);

type Edit = (curve: Curve, region: { from: number; to: number }) => void;
const edits: Record<string, Edit> = {
  louder: (curve, chosen) => curve.scale(chosen, 1.25),
  smooth: (curve, chosen) => curve.smooth(chosen),
  gate: (curve, chosen) => curve.gate(chosen),
  mute: (curve, chosen) => curve.mute(chosen),
  later: (curve, chosen) => curve.shift(chosen, 2),
  shape: (curve, chosen) => curve.shape(chosen, "V", 0.5),
  replace: (curve, chosen) => curve.replace([0.1, 0.2], chosen),
  reset: (curve, chosen) => curve.reset(chosen),
};

for (const [name, edit] of Object.entries(edits)) {
  test(`${name} changes the region only, stays a loudness, and can be undone and done again`, () => {
    fc.assert(fc.property(withRegion, ([all, chosen]) => {
      const curve = new Curve(all), before = curve.values.slice();
      edit(curve, chosen);
      const after = curve.values.slice();
      after.forEach((value, frame) => {
        assert.ok(value >= 0 && value <= 1);
        if (frame < chosen.from || frame >= chosen.to) assert.equal(value, before[frame]);
      });
      curve.undo();
      assert.deepEqual(curve.values, before);
      curve.redo();
      assert.deepEqual(curve.values, after);
    }));
  });
}

test("what is shifted there and back again is what it was, but for what left the region", () => {
  fc.assert(fc.property(withRegion, fc.integer({ min: -5, max: 5 }), ([all, chosen], by) => {
    const curve = new Curve(all), before = curve.values.slice();
    curve.shift(chosen, by);
    curve.shift(chosen, -by);
    for (let frame = chosen.from; frame < chosen.to; frame++) {
      const left = frame + by < chosen.from || frame + by >= chosen.to;
      assert.equal(curve.values[frame], left ? 0 : before[frame]);
    }
  }));
});

test("a dragged point is where it was dragged to, and its neighbours stay", () => {
  const grips = values.filter((all) => all.length >= 5).chain((all) =>
    fc.tuple(fc.constant(all), fc.uniqueArray(fc.nat(all.length - 1), { minLength: 3, maxLength: 3 }), fc.double({ min: 0, max: 1, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })));
  fc.assert(fc.property(grips, ([all, ends, along, value]) => {
    const [left, at, right] = ends.sort((a, b) => a - b) as [number, number, number];
    const to = Math.min(right - 1, Math.max(left + 1, Math.round(left + along * (right - left))));
    const curve = new Curve(all), before = curve.values.slice();
    curve.bend(before, [left, at, right], to, value);
    near(curve.values[to]!, value);
    near(curve.values[left]!, before[left]!);
    near(curve.values[right]!, before[right]!);
    curve.values.forEach((now, frame) => { if (frame < left || frame > right) assert.equal(now, before[frame]); });
    curve.bend(before, [left, at, right], at, before[at]!); // back to where it came from
    curve.values.forEach((now, frame) => near(now, before[frame]!));
  }));
});

test("straight lines between the corners stay within the tolerance", () => {
  fc.assert(fc.property(values, fc.double({ min: 0.01, max: 0.5, noNaN: true }), (all, tolerance) => {
    const line = new Curve(all), { values: curve } = new Curve(all), found = corners(curve, tolerance);
    assert.equal(found[0], 0);
    assert.equal(found.at(-1), curve.length - 1);
    for (let i = 1; i < found.length; i++) line.line(found[i - 1]!, curve[found[i - 1]!]!, found[i]!, curve[found[i]!]!);
    curve.forEach((value, frame) => near(line.values[frame]!, value, tolerance + 1e-5));
  }));
});

test("onsets are where hits begin", () => {
  const hits = [20, 55, 130], curve = new Float32Array(200);
  for (const hit of hits) for (let frame = hit; frame < 200; frame++) curve[frame] = Math.max(curve[frame]!, 0.3 * Math.exp(-(frame - hit) / 10));
  assert.deepEqual(onsets(curve), hits);
});
